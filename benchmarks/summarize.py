"""Write the tables and the curves of docs/performance.md from the results: python benchmarks/summarize.py"""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

from gpu_items.page import markdown
from gpu_items.page import section as gpu_section

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
CURVES = ROOT / "docs" / "images" / "performance.svg"
STEPS = 50
"""Of the trials that the first table speaks of: what was measured on fewer is spread over as many."""
COLORS = ("#1b4965", "#2a7f9e", "#62b6cb", "#e0a458", "#c8553d", "#7b2d26")
LEFT, RIGHT, TOP, BOTTOM = 60, 610, 20, 290


def read(name: str) -> dict[str, Any] | None:
    path = Path(__file__).with_name(f"{name}.json")
    return json.loads(path.read_text()) if path.is_file() else None


def conditions(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return f"{result['date']}, {result['device']}, {result['cores']} cores, {result['threads']} threads; {versions}."


def equal_work(result: dict[str, Any]) -> str:
    clock = "" if result["clock"] == "wall" else " **CPU time of the process, measured on a machine that was shared.**"
    parts = [
        f"{conditions(result)}{clock} Columns K: time of `Trainer` + `peft` over time of packs of K.",
        f"The whole list, of trials of {STEPS} steps, with adapters, trainers and optimizers made for each:",
        ratios([(cell, whole_list(cell)) for cell in result["cells"]]),
        "Training steps alone:",
        ratios([(cell, cell["ms_per_trial_step"]["steps"]) for cell in result["cells"]]),
    ]
    return "\n\n".join(parts)


def whole_list(cell: dict[str, Any]) -> dict[str, list[float]]:
    """ms per trial and step, by the way of training, of trials of `STEPS` steps: their steps, and the set-up."""
    whole, steps = cell["ms_per_trial_step"]["whole"], cell["ms_per_trial_step"]["steps"]
    share = cell["steps"] / STEPS
    return {
        name: [step + (all_ - step) * share for all_, step in zip(whole[name], values, strict=True)]
        for name, values in steps.items()
    }


def speedups(times: dict[str, list[float]]) -> dict[str, float]:
    """By pack size, the median over the repeats of how many times as long the sequential trials took."""
    sequential = times["sequential"]
    return {
        name: statistics.median(a / b for a, b in zip(sequential, values, strict=True))
        for name, values in times.items()
        if name != "sequential"
    }


def ratios(cells: list[tuple[dict[str, Any], dict[str, list[float]]]]) -> str:
    """A table of cells and their times, with the best and the worst ratio below."""
    packs = sorted({name for _, times in cells for name in speedups(times)}, key=int)
    rows, found = [], []
    for cell, times in cells:
        speedup, tokens = speedups(times), cell["tokens_per_trial_step"]
        middle = {name: statistics.median(values) for name, values in times.items()}
        alone = middle.pop("sequential")
        rates = [f"{speedup[name]:.2f}" if name in speedup else "" for name in packs]
        rows.append([str(tokens), f"{alone:.0f}", *rates, f"{1000 * tokens / min(middle.values()):,.0f}"])
        found += [(ratio, tokens, name) for name, ratio in speedup.items()]
    head = ["tokens per trial and step", "sequential, ms per step", *(f"K = {name}" for name in packs)]
    (best, most, best_pack), (worst, least, worst_pack) = max(found), min(found)
    return (
        f"{markdown([*head, 'best, tokens/s'], rows)}\n\nBest cell: {best:.2f} ({most} tokens, K = {best_pack}). "
        f"Worst: {worst:.2f} ({least} tokens, K = {worst_pack})."
    )


def processes(result: dict[str, Any]) -> str:
    rows = []
    for cell in result["cells"]:
        alone, packed = cell["processes"], cell["packed"]
        steps = cell["counted_step_bytes"]
        shared = steps[0]["base"]
        counted = shared + sum(step["peak"] - step["base"] for step in steps)
        error = max(abs(step["predicted"] / step["peak"] - 1) for step in steps)
        rows.append(
            [
                str(cell["tokens_per_trial_step"]),
                f"{sum(one['wall_s'] for one in alone):.0f} / {packed['wall_s']:.0f}",
                f"{cell['speedup_with_startup']:.2f}",
                f"{cell['speedup_of_training']:.2f}",
                f"{sum(one['peak_rss_bytes'] for one in alone) / 2**20:.0f} / {packed['peak_rss_bytes'] / 2**20:.0f}",
                f"{sum(step['peak'] for step in steps) / 2**20:.0f} / {counted / 2**20:.0f}",
                f"{100 * error:.1f}%",
            ]
        )
    head = [
        "tokens",
        "whole, s: processes / pack",
        "ratio",
        "ratio of training alone",
        "resident, MiB: processes / pack",
        "tensors, MiB: alone, added up / pack",
        "largest error of the prediction",
    ]
    count = result["cells"][0]["trials"]
    steps = ", ".join(str(cell["steps"]) for cell in result["cells"])
    return f"{conditions(result)} {count} trials of {steps} steps.\n\n{markdown(head, rows)}"


def whole_study(result: dict[str, Any]) -> str:
    names = {"wall_s": "the whole command", "trials_s": "first trial's start to last trial's end"}
    rows = [
        [label, f"{result['seconds']['study'][key]:.1f}", f"{result['seconds']['alone'][key]:.1f}", f"{ratio:.2f}"]
        for key, label in names.items()
        for ratio in [result["ratio"][key]]
    ]
    lora, training = result["longest"]["config"]["lora"], result["longest"]["config"]["training"]
    states = ", ".join(f"{count} {state}" for state, count in result["states"].items() if count)
    return (
        f"{conditions(result)} {result['trials']} trials: {states}. The longest: r {lora['r']}, "
        f"{lora['target_modules']}, {training['num_train_epochs']} epochs.\n\n"
        + markdown(["", "study, s", "longest trial alone, s", "ratio"], rows)
    )


def gpu(result: dict[str, Any]) -> str:
    return gpu_section(result)


def curves(result: dict[str, Any]) -> str:
    """An SVG: the ratio over sequential training against tokens per trial and step, a line for each pack size."""
    cells = result["cells"]
    tokens = [cell["tokens_per_trial_step"] for cell in cells]
    found = [speedups(whole_list(cell)) for cell in cells]
    highest = max(ratio for speedup in found for ratio in speedup.values())
    top = math.ceil(highest)
    low, high = math.log2(tokens[0]), math.log2(max(tokens[-1], tokens[0] * 2))

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (math.log2(value) - low) / (high - low)

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * value / top

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 340" font-family="sans-serif" font-size="13">',
        '<rect width="700" height="340" fill="#fff"/>',
    ]
    for value in range(top + 1):
        color = "#888" if value == 1 else "#ddd"
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="{color}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value}x</text>')
    parts += [f'<text x="{x(value):.1f}" y="{BOTTOM + 20}" text-anchor="middle">{value}</text>' for value in tokens]
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{BOTTOM + 42}" text-anchor="middle">tokens per trial and step</text>')
    packs = sorted({name for speedup in found for name in speedup}, key=int)
    for index, (pack, color) in enumerate(zip(packs, COLORS, strict=False)):
        points = [(x(count), y(speedup[pack])) for count, speedup in zip(tokens, found, strict=True) if pack in speedup]
        line = " ".join(f"{left:.1f},{up:.1f}" for left, up in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{left:.1f}" cy="{up:.1f}" r="3" fill="{color}"/>' for left, up in points]
        parts.append(f'<text x="{RIGHT + 14}" y="{TOP + 14 + 20 * index}" fill="{color}">K = {pack}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    page = PAGE.read_text()
    for section in (equal_work, processes, whole_study, gpu):
        name = section.__name__
        result = read(name)
        text = "Not measured yet." if result is None else section(result)
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not between.search(page):
            raise SystemExit(f"{PAGE} has no place for {name}: put <!-- {name} --> and <!-- /{name} --> into it")
        page = between.sub(lambda found, text=text: found[1] + text + "\n" + found[2], page)
        if name == "equal_work" and result is not None:
            CURVES.write_text(curves(result))
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
