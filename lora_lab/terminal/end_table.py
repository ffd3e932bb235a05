"""The best trials as a table, which a finished sweep prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lora_lab.analysis.selection import ranked, search_trials
from lora_lab.analysis.wording import (
    measure_text,
    number_text,
    rate_text,
    targets_text,
    value_name,
    value_text,
)
from lora_lab.study.measures import MEASURES, costs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from lora_lab.analysis.findings import Findings
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult


SHOWN = 8
"""Trials in the table, and the recommended one."""


def end_table(results: Sequence[TrialResult], findings: Findings) -> Table:
    """The best trials of the search, best first; where none finished, what became of the first ones."""
    measure = findings.measure
    ranking = [result for result, _ in ranked(results, measure)]
    ties = {standing.number for standing in findings.equivalent} if findings.helped else set()
    choice = findings.cheapest.number if findings.cheapest and findings.helped else None
    rows = (ranking or search_trials(results))[:SHOWN]
    rows += [result for result in ranking[SHOWN:] if result.number == choice]
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        header_style="bold",
        caption_justify="left",
    )
    unit = f", {measure.unit}" if measure.unit else ""
    if choice is not None:
        table.caption = f"{value_name(measure)}: {measure.label}{unit};  * the cheapest tie (recommended);  = a tie"
    for name in ("trial", value_name(measure), "r", "alpha"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("targets", "layers"):
        table.add_column(name, max_width=14, overflow="ellipsis")
    for name in ("ep", "lr", *(MEASURES[cost].header for cost in costs())):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for result in rows:
        mark = "*" if result.number == choice else "=" if result.number in ties else ""
        table.add_row(*_end_row(result, measure, mark), style="bold" if mark == "*" else None)
    return table


def _end_row(result: TrialResult, measure: Measure, mark: str) -> list[RenderableType]:
    lora, training = result.config.lora, result.config.training

    def metric(name: str) -> str:
        return measure_text(MEASURES[name], result.metrics[name]) if name in result.metrics else ""

    return [
        f"{mark}{result.number}",
        metric(measure.name),
        str(lora.r),
        number_text(lora.alpha),
        Text(targets_text(lora)),
        Text(value_text(lora.layers)),
        str(training.num_train_epochs),
        rate_text(training.learning_rate),
        *map(metric, costs()),
        result.state.replace("_", " "),
    ]
