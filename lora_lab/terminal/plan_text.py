"""A plan on the terminal: tables, and what to do about what does not fit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.table import Table

from lora_lab.analysis.wording import duration_text, plural
from lora_lab.common.sizes import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.console import Console

    from lora_lab.planning.calibration import Calibration
    from lora_lab.planning.plan import Memory, Plan

MOST_ROWS = 60
"""Of a table; `--json` has all."""


def print_plan(plan: Plan, console: Console) -> None:
    """Print a plan for people."""
    for label, text in _overview(plan):
        console.print(f"[bold]{label:<14}[/bold]", end="")
        console.print(text, markup=False, soft_wrap=True)
    _show(console, "Trainable parameters", _adapter_table(plan), len(plan.adapters))
    for line in _placements(plan):
        console.print(line, markup=False, soft_wrap=True)
    _show(console, "Memory of one trial, and how many fit at once", _memory_table(plan), len(plan.memory))
    for line in _memory_words(plan):
        console.print(line, markup=False, soft_wrap=True)
    misfits = [row for row in plan.memory if row.fits is False]
    if misfits:
        _print_misfits(console, plan, misfits)
    if plan.notes:
        console.print("\n[bold]Read with care[/bold]")
        for note in plan.notes:
            console.print(f"  - {note}", markup=False, soft_wrap=True)


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
    for use in plan.engines:
        yield "engine", f"{use.name}: {use.reason} ({plural(use.shapes, 'shape')})"
    packs = "found by measuring" if plan.packs is None else f"at least {plural(plan.packs, 'pack')}"
    yield "pack size", f"{plan.pack_size} ({packs})"
    yield "work", _work_text(plan)
    if plan.calibration is not None:
        yield "time", _time_text(plan.calibration, plan)


def _trials_text(plan: Plan) -> str:
    if plan.is_exact:
        text = (
            f"{plural(plan.configurations, 'configuration')} of the grid: {plan.duplicates} the same as others, "
            f"{plan.shared} read off longer runs, {plan.trained} trained"
        )
    else:
        text = f"{plural(plan.configurations, 'trial')} by {plan.sampler}; equal ones are trained once"
    return text + (f"; {plan.retrainings} retrainings of the best" if plan.retrainings else "")


def _work_text(plan: Plan) -> str:
    work = plan.work
    if work.flops_per_epoch is None or work.total_flops is None:
        return "unknown: the training rows are not counted without reading them"
    low, high = work.flops_per_epoch
    per_epoch = f"{low:.2g}" if math.isclose(low, high, rel_tol=0.05) else f"{low:.2g} to {high:.2g}"
    text = (
        f"at most {work.total_flops:.2g} FLOPs in all, {per_epoch} per trial and epoch of {work.examples:,} full rows"
    )
    if work.seconds is None:
        return f"{text}; no time without a trial of this study that tells the speed"
    return f"{text}; about {duration_text(work.seconds)} at {work.tokens_per_second:,.0f} tokens/s"


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


def _show(console: Console, title: str, table: Table, rows: int) -> None:
    console.print(f"\n[bold]{title}[/bold]")
    console.print(table)
    if rows > MOST_ROWS:
        console.print(f"... and {rows - MOST_ROWS} more (--json has all)", markup=False)


def _table(*columns: tuple[str, bool]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left", no_wrap=is_number)
    return table


def _adapter_table(plan: Plan) -> Table:
    table = _table(("targets", False), ("layers", False), ("r", True), ("parameters", True), ("of all", True))
    for row in plan.adapters[:MOST_ROWS]:
        share = f"{row.trainable_percent:.3g}%"
        table.add_row(row.target_modules, row.layers, str(row.r), f"{row.trainable_params:,}", share)
    return table


def _placements(plan: Plan) -> Iterator[str]:
    """What each choice of targets adapts and leaves out; layers and ranks change neither name."""
    first = {row.target_modules: row for row in reversed(plan.adapters) if row.layers == "all"}
    for row in first.values() or plan.adapters[:1]:
        yield f"{row.target_modules} adapts {'; '.join(row.adapted)}"
        if row.left_out:
            yield f"    and leaves out {'; '.join(row.left_out)}"


def _memory_table(plan: Plan) -> Table:
    """Columns that say nothing here are left out, so that it fits into a terminal."""
    layers = any(row.layers != "all" for row in plan.memory)
    remarks = any(_remark(row) for row in plan.memory)
    limited = plan.limit_bytes is not None
    table = _table()
    for name in ("base", "targets", *(["layers"] if layers else [])):
        table.add_column(name, no_wrap=True, max_width=16)
    for name in ("r", "tokens", "predicted", "base", "adapter*", "activations", *(["at once"] if limited else [])):
        table.add_column(name, justify="right", no_wrap=True)
    if remarks:
        table.add_column("")
    for row in sorted(plan.memory, key=_place)[:MOST_ROWS]:
        place = [row.quantization, row.target_modules, *([row.layers] if layers else [])]
        figures = [str(row.r), f"{row.rows}x{row.max_length}", *_bytes_of(row)]
        at_once = [_at_once(row)] if limited else []
        remark = [_remark(row)] if remarks else []
        table.add_row(*place, *figures, *at_once, *remark, style="red" if row.fits is False else None)
    return table


def _place(row: Memory) -> tuple[str, str, str, str, int, int, int]:
    return row.quantization, row.target_modules, row.layers, row.other, row.rows, row.max_length, row.r


def _bytes_of(row: Memory) -> tuple[str, ...]:
    if row.terms is None or row.predicted_bytes is None:
        return ("?",) * 4
    terms = row.terms
    return (
        bytes_text(row.predicted_bytes),
        bytes_text(terms["base"] + terms["quantization"]),
        bytes_text(terms["adapters"] + terms["gradients"] + terms["optimizer"]),
        bytes_text(terms["activations"] + terms["logits"]),
    )


def _at_once(row: Memory) -> str:
    if row.engine == "reference":
        return "1"
    return "?" if row.at_once is None else str(row.at_once)


def _remark(row: Memory) -> str:
    engine = "reference engine: not predicted" if row.engine == "reference" else ""
    return ", ".join(part for part in (engine, row.other) if part)


def _memory_words(plan: Plan) -> Iterator[str]:
    yield "adapter*: parameters, gradients and optimizer state; activations with logits; full rows."
    if plan.limit_bytes is not None:
        yield "at once: trials of that kind side by side; 0 does not fit even alone."
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
