"""A plan on the terminal: tables, and what to do about what does not fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import duration_text, plural
from lora_lab.common.sizes import bytes_text
from lora_lab.terminal.columns import Row, parts_table, say

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from lora_lab.planning.calibration import Calibration
    from lora_lab.planning.plan import Generation, Memory, Plan

MOST_ROWS = 60
"""Of a table; `--json` has all."""
MANY_ROWS = 16
"""A longer table has the lowest and the highest rank of each kind: what others need lies between."""


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan for people."""
    for label, text in _overview(plan):
        say(console, text, first=f"{label:<14}")
    _show(console, "Trainable parameters", ("parameters", "of all"), _adapter_rows(plan))
    for line in _placements(plan):
        say(console, line)
    fit = "" if plan.limit_bytes is None else ", and how many fit at once"
    _show(console, f"Memory of one trial{fit}", _memory_heads(plan), _memory_rows(plan))
    for line in _memory_words(plan):
        say(console, line)
    misfits = [row for row in plan.memory if row.fits is False]
    if misfits:
        _print_misfits(console, plan, misfits)
    if plan.notes:
        console.print("\n[bold]Read with care[/bold]")
        for note in plan.notes:
            say(console, note, first="  - ")


def _overview(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "study", plan.study_name + (f": {plan.question}" if plan.question else "")
    yield "model", f"{plan.model}, {plan.base_parameters:,} parameters"
    limit = "no memory limit" if plan.limit_bytes is None else f"limit {bytes_text(plan.limit_bytes)}"
    there = "" if plan.device_bytes is None else f", {bytes_text(plan.device_bytes)}"
    yield "device", f"{plan.device}{there}; {limit}"
    yield "trials", _trials_text(plan)
    if plan.trajectory:
        yield "epochs", plan.trajectory
    for index, (name, values) in enumerate(plan.space.items()):
        yield ("space" if index == 0 else ""), f"{name}: {values}"
    kinds = sum(use.shapes for use in plan.engines)
    for use in plan.engines:
        yield "engine", f"{use.name}: {use.reason} ({_share_of_kinds(use.shapes, kinds)})"
    yield "pack size", _pack_text(plan)
    yield "work", _work_text(plan)
    if plan.generation is not None:
        yield "answers", _generation_text(plan.generation)
    if plan.calibration is not None:
        yield "time", _time_text(plan.calibration, plan)


def _trials_text(plan: Plan) -> str:
    if plan.is_exact:
        told = {"the same as others": plan.duplicates, "read off longer runs": plan.shared}
        less = [f"{count} {words}" for words, count in told.items() if count]
        trained = ", ".join([*less, f"{plan.trained} trained"]) if less else "all trained"
        text = f"{plural(plan.configurations, 'configuration')} of the grid: {trained}"
    else:
        text = f"{plural(plan.configurations, 'trial')} by {plan.sampler}; equal ones are trained once"
    return text + (f"; {plural(plan.retrainings, 'retraining')} of the best" if plan.retrainings else "")


def _share_of_kinds(count: int, all_kinds: int) -> str:
    return "all trials" if count == all_kinds else f"{count} of {all_kinds} kinds of trials"


def _pack_text(plan: Plan) -> str:
    if plan.packs is None:
        return f"{plan.pack_size}: how many trials train at once is found by measuring"
    return f"{plan.pack_size} at once, so at least {plural(plan.packs, 'pack')} one after the other"


def _work_text(plan: Plan) -> str:
    work = plan.work
    if work.flops_per_epoch is None or work.total_flops is None:
        unknown = f"unknown: {work.uncounted}"
        return unknown if plan.calibration else f"{unknown}; --calibrate reads the rows, and times some steps"
    low, high = work.flops_per_epoch
    per_epoch = f"{low:.2g}" if math.isclose(low, high, rel_tol=0.05) else f"{low:.2g} to {high:.2g}"
    rows = f"{work.examples:,} full {'row' if work.examples == 1 else 'rows'}"
    text = f"at most {work.total_flops:.2g} FLOPs in all, {per_epoch} per trial and epoch of {rows}"
    if work.seconds is not None:
        speed = f"{work.tokens_per_second:,.0f} tokens/s of this study's trials"
        return f"{text}; about {duration_text(work.seconds)} at the {speed}"
    return text if plan.calibration else f"{text}; --calibrate times some steps and tells how long that takes"


def _generation_text(answers: Generation) -> str:
    if answers.tokens is None or answers.prompts is None or answers.rounds is None:
        text = f"up to {plural(answers.max_new_tokens, 'new token')} for each held-out prompt; how many is not counted"
    else:
        rounds = "at the end" if answers.rounds == 1 else f"{answers.rounds:.3g} times"
        rounds += f" ({plural(answers.test_prompts, 'test prompt')} once)" if answers.test_prompts else ""
        text = (
            f"at most {answers.tokens:,} new tokens in all: {plural(answers.prompts, 'prompt')} of up to "
            f"{answers.max_new_tokens} by each trial {rounds}, and once by the bare base"
        )
    rows = f"{plural(answers.rows, 'row')} of {answers.length:,} tokens"
    if answers.kept_bytes is None:
        return f"{text}; what the base keeps of {rows} is only known by trying"
    return f"{text}; a trial's {rows} take {bytes_text(answers.kept_bytes)} of keys, values and states, not in training"


def _time_text(timed: Calibration, plan: Plan) -> str:
    low, high = duration_text(timed.low), duration_text(timed.high)
    parts = ", ".join(
        f"{name} {duration_text(seconds)}"
        for name, seconds in (
            ("training", timed.training_s),
            ("evaluations", timed.evaluation_s),
            ("loading and admissions", timed.other_s),
        )
    )
    pruned = "" if plan.pruner == "none" else ", less as far as trials are pruned"
    return (
        f"about {duration_text(timed.seconds)} ({low} to {high}, 95%){pruned}: {parts}; from "
        f"{plural(timed.steps, 'step')} of {plural(timed.pack_size, 'trial')} at once ({timed.tokens_per_second:,.0f} "
        f"tokens/s) and {timed.batches} batches of evaluations, timed just now"
    )


def _show(console: Console, title: str, heads: Sequence[str], rows: Sequence[Row]) -> None:
    console.print(f"\n[bold]{title}[/bold]")
    shown = _ends_of_ranks(rows) if len(rows) > MANY_ROWS else rows
    table, shared = parts_table(heads, shown[:MOST_ROWS], "of trials with", console.width)
    console.print(table)
    if shared:
        say(console, f"{'all of these' if len(rows) > 1 else 'of trials with'}: {shared}")
    if len(shown) < len(rows):
        say(console, "only the lowest and the highest rank of each kind are shown; --json has all")
    if len(shown) > MOST_ROWS:
        say(console, f"... and {len(shown) - MOST_ROWS} more (--json has all)")


def _ends_of_ranks(rows: Sequence[Row]) -> list[Row]:
    """Of rows that differ in nothing but their rank, and come by it, the first and the last; and what does not fit."""
    kinds: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        kinds.setdefault(tuple(text for name, text in row.parts.items() if name != "r"), []).append(row)
    ends = {id(row) for kind in kinds.values() for row in (kind[0], kind[-1])}
    return [row for row in rows if id(row) in ends or row.style is not None]


def _adapter_rows(plan: Plan) -> list[Row]:
    return [
        Row(
            (f"{row.trainable_params:,}", f"{row.trainable_percent:.3g}%"),
            {"r": f"r={row.r}", "targets": row.target_modules, "layers": f"{row.layers} layers"},
        )
        for row in plan.adapters
    ]


def _placements(plan: Plan) -> Iterator[str]:
    """What each choice of targets adapts and leaves out; layers and ranks change neither name."""
    first = {row.target_modules: row for row in reversed(plan.adapters) if row.layers == "all"}
    for row in sorted(first.values(), key=lambda row: row.target_modules) or plan.adapters[:1]:
        rest = f"; it leaves out {'; '.join(row.left_out)}" if row.left_out else ""
        yield f"{row.target_modules} adapts {'; '.join(row.adapted)}{rest}"


def _memory_heads(plan: Plan) -> list[str]:
    limited = plan.limit_bytes is not None
    base = [] if _base_bytes(plan) else ["base"]
    return ["predicted", *base, "adapter*", "activations*", *(["at once*"] if limited else [])]


def _base_bytes(plan: Plan) -> int | None:
    """What the base takes of the memory of every trial that is predicted; None where that differs."""
    sizes = {row.terms["base"] + row.terms["quantization"] for row in plan.memory if row.terms is not None}
    return sizes.pop() if len(sizes) == 1 else None


def _memory_rows(plan: Plan) -> list[Row]:
    limited, has_base = plan.limit_bytes is not None, _base_bytes(plan) is None
    return [
        Row(
            (*_bytes_of(row, has_base=has_base), *([_at_once(row)] if limited else [])),
            {
                "r": f"r={row.r}",
                "quantization": f"{'no' if row.quantization == 'none' else row.quantization} quantization",
                "targets": row.target_modules,
                "layers": f"{row.layers} layers",
                "tokens": f"{row.rows} x {row.max_length} tokens",
                **{other.partition("=")[0]: other for other in row.other.split(", ")},
                "engine": "reference engine: not predicted" if row.engine == "reference" else "",
            },
            "red" if row.fits is False else None,
        )
        for row in sorted(plan.memory, key=_place)
    ]


def _place(row: Memory) -> tuple[str, str, str, str, int, int, int]:
    return row.quantization, row.target_modules, row.layers, row.other, row.rows, row.max_length, row.r


def _bytes_of(row: Memory, *, has_base: bool) -> list[str]:
    if row.terms is None or row.predicted_bytes is None:
        return ["?"] * (4 if has_base else 3)
    terms = row.terms
    sizes = {
        "predicted": row.predicted_bytes,
        "base": terms["base"] + terms["quantization"],
        "adapter": terms["adapters"] + terms["gradients"] + terms["optimizer"],
        "activations": terms["activations"] + terms["logits"],
    }
    return [bytes_text(size) for name, size in sizes.items() if has_base or name != "base"]


def _at_once(row: Memory) -> str:
    if row.engine == "reference":
        return "1"
    return "?" if row.at_once is None else str(row.at_once)


def _memory_words(plan: Plan) -> Iterator[str]:
    base = _base_bytes(plan)
    alone = "" if base is None else f"predicted: with the base, {bytes_text(base)} in all of these; "
    yield (
        f"{alone}adapter*: its parameters, gradients and optimizer state; activations*: with logits, all rows of full "
        "length"
    )
    if plan.limit_bytes is not None:
        yield "at once*: how many such trials fit side by side; 0 does not fit even alone"
    if any(row.predicted_bytes is None and row.engine == "packed" for row in plan.memory):
        yield "?: this base's forward pass depends on its data, so its memory is only known by trying."


def _print_misfits(console: Console, plan: Plan, misfits: Sequence[Memory]) -> None:
    assert plan.limit_bytes is not None
    console.print(f"\n[bold]{plural(len(misfits), 'shape')} above {bytes_text(plan.limit_bytes)}[/bold]")
    for row in misfits:
        if row.remedies and row.predicted_bytes is not None:
            name = f"{row.quantization} {row.target_modules} r={row.r}, {row.rows} x {row.max_length} tokens"
            console.print(f"  {name}: {bytes_text(row.predicted_bytes)}; with", markup=False)
            for remedy in row.remedies:
                verdict = "fits" if remedy.fits else "still too large"
                console.print(f"    {remedy.change}: {bytes_text(remedy.predicted_bytes)}, {verdict}", markup=False)
