"""What tasks of lm-evaluation-harness measured, as a table on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lora_lab.study.task_scores import column_order
from lora_lab.terminal.columns import GAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from lora_lab.analysis.findings import Findings
    from lora_lab.study.task_scores import TaskScores


def print_task_scores(tasks: Sequence[TaskScores], findings: Findings, console: Console) -> None:
    """Print a row for each task and metric, and a column for each trial, the bare base first."""
    columns = sorted({name for task in tasks for name in task.columns}, key=column_order)
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for head in ("task", "metric"):
        table.add_column(head)
    for name in columns:
        table.add_column(_head(name, findings), justify="right")
    for task in tasks:
        for metric in task.metrics:
            scores = [task.columns.get(name, {}).get(metric) for name in columns]
            is_better = task.higher_is_better.get(metric, True)
            named = Text(metric if is_better else f"{metric} (lower is better)")
            table.add_row(Text(task.task), named, *(Text("" if one is None else one.text) for one in scores))
    console.print(table)


def _head(name: str, findings: Findings) -> Text:
    if not name.isdigit():
        return Text(name)
    roles = ", ".join(findings.roles(int(name)))
    return Text(f"trial {name}" + (f"\n{roles}" if roles else ""))
