"""The figures of a run as text: python -m gpu_items.table gpu.json [CHARACTERS]"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

EXACT = ("exact64", "exact32", "exact16", "exactq")
PLAIN = re.compile(r"T(\d+) (Trainer|bare loop of PEFT|(?:(?:loop|blocks)(?: \+ graph)?|captured|graph) K\d+)")
ADAPTER_PRODUCTS = ("loop", "bmm", "gradient_loop", "gradient_bmm", "bmm_out_dtype")
STUDY = (
    *("seconds", "seconds_to_first_step", "longest_trial_s", "over_longest"),
    "from the first step, over longest",
)
SPEED = {"speed8b": "8B bf16", "speed8bq": "8B nf4", "speed1b": "1B bf16"}


def cells(items: dict, *names: str) -> dict[str, dict]:
    """Results by cell name, of what succeeded."""
    return {
        cell: line["result"]
        for name in names
        for cell, line in items.get(name, {}).get("cells", {}).items()
        if line.get("ok") and "result" in line
    }


def short(value: Any, digits: int = 3) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.{digits}g}" if abs(value) < 1000 else f"{value:,.0f}"


def columns(head: list[str], rows: list[list[Any]]) -> Iterator[str]:
    texts = [head, *([short(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(head))]
    for row in texts:
        yield "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()


def opening(facts: dict, items: dict) -> Iterator[str]:
    lines = [line for found in items.values() for line in found.get("cells", {}).values()]
    failed = sum(not line.get("ok") for line in lines)
    waiting = sum(cell not in found.get("cells", {}) for found in items.values() for cell in found.get("order", []))
    env = cells(items, "env")
    v = env.get("versions", {})
    packages = v.get("packages", {})
    named = ", ".join(
        f"{name} {packages.get(name)}"
        for name in ("torch", "transformers", "peft", "bitsandbytes")
        if packages.get(name)
    )
    card = f"{v.get('device', 'no GPU')}, {v.get('device_gb', '-')} GB"
    yield f"GPU EVIDENCE  {card}; {named}; cuDNN {v.get('cudnn')}; project {facts.get('project', {})}"
    yield f"{len(lines)} cells in {facts.get('elapsed_s', 0):.0f} s: {failed} failed, {waiting} not run"


def machine(_: dict, items: dict) -> Iterator[str]:
    env = cells(items, "env")
    if found := env.get("ceilings"):
        rows = ", ".join(f"{n}: {short(one['tflops'])}" for n, one in found["mlp_rows"].items())
        square = f"{short(found['square_tflops'])} TFLOP/s (float32 {short(found['square_float32_tflops'])})"
        yield f"copy {short(found['copy_tb_s'])} TB/s; square product {square}; rows of 8B's MLP: {rows}"
    if found := env.get("launches"):
        yield "host us: " + ", ".join(f"{name[:-3]} {short(value)}" for name, value in found.items())
    if (found := env.get("context")) and "attention" in found:
        yield "outside torch's allocator, MB: " + ", ".join(
            f"after {name} {one['outside_mb']}"
            for name, one in found.items()
            if isinstance(one, dict) and "outside_mb" in one
        )
    for name, found in env.get("attention", {}).items():
        first = [round(sum(pair)) for pair in found["first_ms"]]
        second = [round(sum(pair), 1) for pair in found["second_ms"]]
        kernel = next(
            (k for k in found["kernels"] if "cudnn" in k.lower() or "flash" in k.lower() or "fmha" in k.lower()), "?"
        )
        steady = f"{short(found['ms_64'])}/{short(found['ms_512'])}"
        yield f"SDPA {name}: new shapes {first} ms, again {second}; steady 64/512: {steady} ms; {kernel[:40]}"
    for n, found in env.get("adapters", {}).items():
        us = {name: short(found.get(f"{name}_us")) for name in ADAPTER_PRODUCTS}
        outputs = f"loop {us['loop']} / bmm {us['bmm']}"
        gradients = f"loop {us['gradient_loop']} / bmm {us['gradient_bmm']} / bmm(out_dtype) {us['bmm_out_dtype']}"
        yield f"adapter products, 8 trials x {n} rows, us: {outputs}; gradient {gradients}"
    if found := env.get("operators"):
        yield "operators: " + "; ".join(f"{name}: {str(value)[:80]}" for name, value in found.items())
    if found := env.get("quantized"):
        yield "bitsandbytes: " + ", ".join(f"{name} {short(value)}" for name, value in found.items())


def exactness(_: dict, items: dict) -> Iterator[str]:
    rows, remarks = [], []
    for name, found in cells(items, *EXACT).items():
        size = f"{found['trials']}x{found['steps']}" if "trials" in found else ""
        rows.append([name, *(found.get(key) for key in ("loss", "adapter", "eval", "norm_ratio")), size])
        remarks += _remarks(name, found)
    if rows:
        yield from columns(["largest difference", "loss", "adapter", "eval", "norm-1", ""], rows)
        yield from remarks


def _remarks(name: str, found: dict) -> Iterator[str]:
    if "Trainer against itself, padded" in found:
        ours, noise = found["packed against Trainer"], found["Trainer against itself, padded"]
        alone = found["packed against alone in the packed engine"]
        losses = [short(one["loss"]) for one in (ours, noise, alone)]
        first = [[float(short(x)) for x in one.get("norm_ratio_first_step", [])] for one in (ours, noise)]
        yield f"  bf16 noise: packed/Trainer {losses[0]}, Trainer/itself padded {losses[1]}, packed/alone {losses[2]}"
        yield f"  first gradient norms, packed/Trainer - 1: {first[0]}; Trainer padded: {first[1]}"
    if name.endswith("dropout") or "diverging" in name:
        parts = {key: part for key, part in found.items() if isinstance(part, dict)}
        ends = {key: f" ({str(part['neighbor'])[:40]})" if part.get("neighbor") else "" for key, part in parts.items()}
        yield f"  {name}: " + "; ".join(f"{key}: {short(part['loss'])}{ends[key]}" for key, part in parts.items())
    if "ends" in found or "unequal numbers of steps" in found:
        yield f"  {name}: {found.get('ends')} {found.get('unequal numbers of steps', '')}"


def running_out(_: dict, items: dict) -> Iterator[str]:
    for name, found in cells(items, "memory1b").items():
        if "outcome" in found:
            place = name.removeprefix("gone at: ")
            same = (
                f"differs by {short(found['largest difference'])}" if found["all figures there"] else "figures missing"
            )
            reached = "" if found.get("reached", True) else "; NOT REACHED"
            yield f"{place}: {found['outcome'][:230]}; {same}; set aside {found['set_aside']}; {found['ends']}{reached}"


def memory(_: dict, items: dict) -> Iterator[str]:
    measured = cells(items, "memory1b", "speed8b", "speed8bq")
    predicted = cells(items, "predict1b", "predict8b")
    rows = []
    for name, found in measured.items():
        if not name.startswith("memory ") or "counted" not in found:
            continue
        said = predicted.get(name.removeprefix("memory "), {})
        whole, counted, allocated = said.get("predicted"), found["counted"], found.get("allocated_1")
        own = (found["allocated_4"] - allocated) / 3e9 if found.get("allocated_4") and allocated else None
        rows.append(
            [
                name.removeprefix("memory "),
                *(
                    value / 1e9 if value else None
                    for value in (
                        whole,
                        counted,
                        allocated,
                        found.get("requested_1"),
                        found.get("reserved_1"),
                        found.get("product_says_allocated"),
                    )
                ),
                _percent(whole, counted),
                _percent(whole, allocated),
                said.get("own", 0) / 1e9 or None,
                own,
            ]
        )
    if rows:
        yield from columns(
            [
                "GB",
                "predicted",
                "counted",
                "allocated",
                "requested",
                "reserved",
                "product says",
                "% counted",
                "% allocated",
                "own predicted",
                "own in 4",
            ],
            rows,
        )


def _percent(one: float | None, other: float | None) -> float | None:
    return 100 * (one / other - 1) if one and other else None


def speeds(items: dict, item: str) -> tuple[dict[str, dict], dict[int, float]]:
    """Timed cells by name, and the milliseconds of `Trainer` by tokens per step."""
    found = {
        name: one
        for name, one in cells(items, item).items()
        if "T" in one and not name.startswith(("profile", "memory"))
    }
    alone = {
        one["T"]: one["ms_trial"]
        for name, one in found.items()
        if one["mode"] == "Trainer" and "ms_trial" in one and name == f"T{one['T']} Trainer"
    }
    return found, alone


def pivot(_: dict, items: dict) -> Iterator[str]:
    """Milliseconds per trial and step / ratio over `Trainer`, by tokens per trial and step."""
    for item, title in SPEED.items():
        found, alone = speeds(items, item)
        by_length: dict[int, dict[str, str]] = {}
        for name, one in found.items():
            if match := PLAIN.fullmatch(name):
                text = "no room" if one.get("does_not_fit") else short(one.get("ms_trial"))
                if "ms_trial" in one and one["T"] in alone and one["mode"] != "Trainer":
                    text += f"/{alone[one['T']] / one['ms_trial']:.1f}x"
                by_length.setdefault(int(match[1]), {})[match[2]] = text
        if by_length:
            heads = list(dict.fromkeys(name for row in by_length.values() for name in row))
            heads.sort(
                key=lambda name: (
                    name != "Trainer",
                    "graph" in name,
                    "blocks" in name,
                    int(name.rpartition("K")[2]) if "K" in name else 0,
                )
            )
            texts = [[title, *heads]] + [
                [f"T{length}", *(row.get(head, "") for head in heads)] for length, row in sorted(by_length.items())
            ]
            widths = [max(len(row[i]) for row in texts) for i in range(len(heads) + 1)]
            for row in texts:
                yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def speed(_: dict, items: dict, *, others_only: bool = False) -> Iterator[str]:
    ceiling = cells(items, "env").get("ceilings", {}).get("square_tflops")
    for item, title in SPEED.items():
        found, alone = speeds(items, item)
        rows = [
            _speed_row(name, one, alone, ceiling)
            for name, one in found.items()
            if not (others_only and PLAIN.fullmatch(name)) and (one.get("does_not_fit") or "ms_trial" in one)
        ]
        if rows:
            yield from columns([title, "ms/step", "ms/trial", "x Trainer", "tokens/s", "% ceiling", "GB", ""], rows)


def _speed_row(name: str, one: dict, alone: dict[int, float], ceiling: float | None) -> list[Any]:
    if one.get("does_not_fit"):
        return [name, *[None] * 6, "does not fit"]
    remarks = ["cuDNN on"] if one.get("cudnn") else []
    if "gradient_difference" in one:
        gradient = f"gradient {short(one['gradient_difference'])} (noise {short(one['noise'])})"
        remarks.append(f"{gradient}, fwd+bwd {short(one['replay_ms'])}, eager {short(one['eager_ms'])}")
    if "in_blocks" in one and one["in_blocks"] != one["K"]:
        remarks.append(f"{one['in_blocks']} in blocks")
    if "ended" in one:
        remarks.append(str(one["ended"]))
    ratio = alone[one["T"]] / one["ms_trial"] if one["T"] in alone else None
    share = 100 * one["tflops"] / ceiling if one.get("tflops") and ceiling else None
    figures = [one["ms_step"], one["ms_trial"], ratio, one.get("tokens_s"), share, one.get("allocated_gb")]
    return [name, *figures, ", ".join(remarks)]


def profiles(_: dict, items: dict) -> Iterator[str]:
    for item, title in SPEED.items():
        for name, one in cells(items, item).items():
            if "launches" not in one:
                continue
            parts = ", ".join(f"{key} {short(value)}" for key, value in one.get("parts_ms", {}).items())
            busy = 100 * one["busy_ms"] / one["span_ms"] if one.get("span_ms") else 0
            time = f"busy {short(one['busy_ms'])} of {short(one['span_ms'])} ms ({busy:.0f}%)"
            yield f"{title} {name}: {one['launches']} launches, {one['copies']} copies, {time}; {parts}"
            top = "; ".join(f"{kernel[:34]} x{count} {short(ms)}" for kernel, count, ms in one.get("top", [])[:3])
            yield f"    {top}"


def rest(_: dict, items: dict) -> Iterator[str]:
    for name, found in cells(items, "extras").items():
        yield f"{name}: {json.dumps(found)[:300]}"
    for item, where in (("study", "beside the others"), ("studyalone", "alone, Flash")):
        for name, found in cells(items, item).items():
            cut, text = ", CUT" if found["cut"] else "", {key: short(found[key]) for key in STUDY}
            over = f"over it {text['over_longest']} ({text['from the first step, over longest']} from the first step)"
            times = f"{text['seconds']} s, first step after {text['seconds_to_first_step']} s"
            longest = f"longest trial {text['longest_trial_s']} s"
            yield f"{name} {where}: rc {found['rc']}{cut}, {times}, {longest}, {over}; {found['stopped']}"
            if found["rc"]:
                yield f"    {' '.join(found['stderr'].split())[-300:]}"
    for item in ("predict1b", "predict8b"):
        for name, found in cells(items, item).items():
            if "parameters" in found:
                yield f"{item}, {name}: {short(found['seconds'])} s for {found['parameters'] / 1e6:.0f}M"


def trouble(_: dict, items: dict) -> Iterator[str]:
    for item, found in items.items():
        for note in found.get("notes", []):
            yield f"{item}: {note}"
        for cell, line in found.get("cells", {}).items():
            if not line.get("ok"):
                yield f"FAILED {item}/{cell}: {' '.join(str(line.get('error')).split())[:170]}"
        waiting = [cell for cell in found.get("order", ["all of it"]) if cell not in found.get("cells", {})]
        if waiting:
            yield f"not run, {item}: {', '.join(waiting)[:260]}"


def briefly_exact(_: dict, items: dict) -> Iterator[str]:
    """Name, largest difference of a loss / of an adapter."""
    texts = [
        f"{name} {short(one.get('loss'))}/{short(one.get('adapter'))}" for name, one in cells(items, *EXACT).items()
    ]
    yield from (" | ".join(texts[i : i + 3]) for i in range(0, len(texts), 3))
    yield from [line for line in exactness(_, items) if line.startswith("  ")]


def others(_: dict, items: dict) -> Iterator[str]:
    yield from speed(_, items, others_only=True)


def briefly(_: dict, items: dict) -> Iterator[str]:
    yield from (line for line in profiles(_, items) if not line.startswith(" "))


PARTS = (
    ("", opening),
    ("TROUBLE", trouble),
    ("MACHINE", machine),
    ("EXACTNESS ON THE GPU", exactness),
    ("MEMORY THAT RUNS OUT", running_out),
    ("MEMORY", memory),
    ("SPEED, r 32, all-linear, one row: ms per trial and step / ratio over Trainer + peft", pivot),
    ("SPEED, all cells", speed),
    ("PROFILES", profiles),
    ("THE REST", rest),
)
BRIEF = (
    ("", opening),
    ("SPEED, r 32, all-linear, one row: ms per trial and step / ratio over Trainer + peft", pivot),
    ("OTHER SPEEDS", others),
    ("EXACTNESS ON THE GPU: largest difference of a loss / an adapter", briefly_exact),
    ("MEMORY THAT RUNS OUT", running_out),
    ("MEMORY", memory),
    ("PROFILES", briefly),
    ("MACHINE", machine),
    ("THE REST", rest),
    ("TROUBLE", trouble),
)


def table(facts: dict, items: dict, limit: int | None = None) -> str:
    """All of it; with a limit, in short, and then in as many characters at most."""
    made: list[str] = []
    for title, part in PARTS if limit is None else BRIEF:
        lines: list[str] = []
        try:
            lines.extend(part(facts, items))
        except Exception as error:  # noqa: BLE001 -- the figures are in the JSON in any case
            lines.append(f"(this part could not be made: {type(error).__name__}: {error})")
        if lines:
            made += [f"--- {title}"] * bool(title) + lines
    for width in (1000, 300, 220, 180, 150, 130, 110, 90):
        text = "\n".join(line if len(line) <= width else line[: width - 1] + "~" for line in made)
        if limit is None or len(text) <= limit:
            return text
    return text[: limit - 40] + "\n... (the rest is in table.txt)"


if __name__ == "__main__":
    whole = json.loads(Path(sys.argv[1]).read_text())
    print(table(whole, whole["items"], int(sys.argv[2]) if len(sys.argv) > 2 else None))
