"""The report's tables as HTML; every cell is escaped here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import measured
from lora_lab.analysis.tradeoff import by_value, rank_table
from lora_lab.analysis.wording import (
    bytes_text,
    count_text,
    duration_text,
    nats,
    number_text,
    one_line,
    rate_text,
    value_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.results import TrialResult


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows, and by what it sorts: a number, a text, or "" for nothing known (always last)."""

    text: str
    sort: str = ""
    kind: str = ""
    """`n` for a number (right-aligned), `reason` for long text."""


def text_cell(text: str, kind: str = "") -> Cell:
    """Foreign text on one line."""
    shown = one_line(text)
    return Cell(shown, shown, kind)


def number_cell(value: float | None, show: Callable[[float], str] = number_text) -> Cell:
    """A number, blank where it is not known."""
    return (
        Cell("", "", "n") if value is None or not math.isfinite(value) else Cell(show(value), repr(float(value)), "n")
    )


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]], *, marked: Sequence[int] = ()) -> str:
    """A sortable table that scrolls sideways where it must; rows whose index is `marked` stand out."""
    numeric = [bool(rows) and all(row[column].kind == "n" for row in rows) for column in range(len(headers))]
    head = "".join(
        f'<th{" class=n" if number else ""}><button type="button">{escape(header)}</button></th>'
        for header, number in zip(headers, numeric, strict=True)
    )
    body = "\n".join(
        f"<tr{' class=choice' if index in marked else ''}>{''.join(map(_cell, row))}</tr>"
        for index, row in enumerate(rows)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(cell: Cell) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return f'<td{kind} data-sort="{escape(cell.sort)}">{escape(cell.text)}</td>'


def value_table(results: Sequence[TrialResult], name: str) -> str:
    """Tried, finished, best and median loss per value of one parameter."""
    rows = [
        [
            text_cell(row.label),
            number_cell(row.tried),
            number_cell(row.finished),
            number_cell(row.best, nats),
            number_cell(row.median, nats),
            number_cell(row.best_trial),
        ]
        for row in by_value(results, name)
    ]
    return table(["value", "tried", "finished", "best", "median", "trial"], rows)


def ranks_table(results: Sequence[TrialResult]) -> str:
    """Best and median loss per target set and rank."""
    rows = [
        [
            text_cell(row.targets),
            number_cell(row.r),
            number_cell(row.finished),
            number_cell(row.best, nats),
            number_cell(row.median, nats),
            number_cell(row.trainable_params, count_text),
            number_cell(row.best_trial),
        ]
        for row in rank_table(results)
    ]
    return table(["targets", "r", "finished", "best", "median", "params", "trial"], rows)


TRIAL_HEADERS = (
    "trial",
    "state",
    "eval_loss",
    "r",
    "alpha",
    "scaling",
    "targets",
    "layers",
    "epochs",
    "lr",
    "params",
    "memory",
    "time",
    "forgetting",
    "remark",
)


def _remark(result: TrialResult) -> str:
    about = []
    if result.confirms is not None:
        about.append(f"retraining of trial {result.confirms} with seed {result.config.training.seed}")
    if result.source is not None:
        about.append(f"read off trial {result.source}")
    if result.reason:
        about.append(result.reason)
    if result.curve and not result.has_value:
        last = max(result.curve)
        about.append(f"{nats(result.curve[last])} at evaluation {last}")
    return "; ".join(about)


def trial_row(result: TrialResult) -> list[Cell]:
    """One trial under `TRIAL_HEADERS`."""
    lora, training = result.config.lora, result.config.training
    return [
        number_cell(result.number),
        text_cell(result.state.replace("_", " ")),
        number_cell(measured(result), nats),
        number_cell(lora.r),
        number_cell(lora.alpha),
        number_cell(lora.scaling),
        text_cell(value_text(lora.target_modules)),
        text_cell(value_text(lora.layers)),
        number_cell(training.num_train_epochs),
        number_cell(training.learning_rate, rate_text),
        number_cell(result.metrics.get("trainable_params"), count_text),
        number_cell(result.metrics.get("peak_memory_bytes"), bytes_text),
        number_cell(result.metrics.get("train_seconds"), duration_text),
        number_cell(measured(result, "forgetting"), nats),
        text_cell(_remark(result), "reason"),
    ]


def trials_table(results: Sequence[TrialResult], choice: int | None) -> str:
    """Every trial in every state; `choice` is the number of the one that the verdict recommends."""
    marked = [index for index, result in enumerate(results) if result.number == choice]
    return table(TRIAL_HEADERS, [trial_row(result) for result in results], marked=marked)
