"""The figures of a run as a section of docs/performance.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpu_items.table import EXACT, PLAIN, SPEED, cells, short, speeds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MEMORY = {"memory1b": "predict1b", "speed8b": "predict8b", "speed8bq": "predict8b"}
"""Items that measure memory, and those that predicted it."""
RUN_OUT = "memory1b"


def section(whole: dict[str, Any]) -> str:
    """Speed, exactness, memory, and what happens when it runs out, each as a table in Markdown."""
    items = whole["items"]
    parts = [conditions(whole), *speed(items), exactness(items), memory(items), running_out(items), study(items)]
    return "\n\n".join(part for part in parts if part)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(whole: dict[str, Any]) -> str:
    versions = cells(whole["items"], "env").get("versions", {})
    packages = versions.get("packages", {})
    named = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft", "bitsandbytes"))
    ceilings = cells(whole["items"], "env").get("ceilings", {})
    card = f"{versions.get('device')} ({versions.get('device_gb', 0):.0f} GB)"
    reached = f"bf16 products reach {ceilings.get('square_tflops', 0):.0f} TFLOP/s"
    launch = cells(whole["items"], "env").get("launches", {}).get("add_us", 0)
    commit = whole.get("project", {}).get("commit", "?")
    return (
        f"{whole['began'][:10]}, {card}; {named}; commit {commit}. {reached}; the host needs {launch:.0f} us for the "
        "smallest operation, so that small steps are bound by the host."
    )


def speed(items: dict) -> Iterator[str]:
    """Milliseconds per trial and step, and in parentheses how many times as long `Trainer` + `peft` take."""
    for item, title in SPEED.items():
        found, alone = speeds(items, item)
        rows: dict[int, dict[str, str]] = {}
        for name, one in found.items():
            match = PLAIN.fullmatch(name)
            if not match or "ms_trial" not in one or one.get("graphs") == 0:  # that one was not captured in truth
                continue
            text = short(one["ms_trial"])
            if one["T"] in alone and one["mode"] != "Trainer":
                text += f" ({alone[one['T']] / one['ms_trial']:.1f}x)"
            rows.setdefault(int(match[1]), {})[match[2]] = text
        if not rows:
            continue
        heads = sorted({head for row in rows.values() for head in row}, key=_order)
        lines = [[str(tokens), *(row.get(head, "") for head in heads)] for tokens, row in sorted(rows.items())]
        yield f"**{title}**\n\n" + markdown(["tokens", *(_words(head) for head in heads)], lines)


def _order(head: str) -> tuple[bool, bool, bool, int]:
    return head != "Trainer", "graph" in head, "blocks" in head, int(head.rpartition("K")[2]) if "K" in head else 0


def _words(head: str) -> str:
    if head == "Trainer":
        return "`Trainer` + `peft`"
    mode, _, count = head.rpartition(" K")
    return f"{mode}, K = {count}" if mode else f"{head}, K = 1"


def exactness(items: dict) -> str:
    rows = [
        [name, *(short(found.get(key)) for key in ("loss", "adapter"))] for name, found in cells(items, *EXACT).items()
    ]
    return markdown(["packed against", "loss, largest difference", "adapter, largest difference"], rows) if rows else ""


def memory(items: dict) -> str:
    """One trial: its prediction against torch's own peak."""
    rows = []
    for measured, predicting in MEMORY.items():
        said = cells(items, predicting)
        for name, found in cells(items, measured).items():
            case = name.removeprefix("memory ")
            if case == name or case not in said or not found.get("allocated_1"):
                continue
            predicted = said[case]["predicted"]
            rows.append(
                [
                    case,
                    *(f"{value / 1e9:.2f}" for value in (predicted, found["counted"], found["allocated_1"])),
                    f"{100 * (predicted / found['allocated_1'] - 1):+.1f}%",
                ]
            )
    head = ["GB", "predicted", "counted", "`max_memory_allocated`", "error of the prediction"]
    return markdown(head, rows) if rows else ""


def running_out(items: dict) -> str:
    rows = []
    for name, found in cells(items, RUN_OUT).items():
        if "outcome" in found and name != "undisturbed":
            apart = short(found["largest difference"]) if found["all figures there"] else "missing"
            rows.append([name.removeprefix("gone at: "), found["outcome"].partition(":")[0], apart])
    return markdown(["memory gone at", "the sweep", "largest difference of a loss (bfloat16)"], rows) if rows else ""


def study(items: dict) -> str:
    lines = []
    for item, where in (("study", "beside four other measurements"), ("studyalone", "alone")):
        for name, found in cells(items, item).items():
            states = found["stopped"]["states"] if found.get("stopped") else {}
            counted = ", ".join(f"{count} {state}" for state, count in states.items())
            lines.append(
                f"`studies/{name}` as a whole, {where}: {found['seconds']:.0f} s, of which "
                f"{found['seconds_to_first_step']:.0f} s until the first step; {counted}."
            )
    return "\n\n".join(lines)
