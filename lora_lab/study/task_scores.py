"""What a task of lm-evaluation-harness measured of a study's trials and of their bare base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

BASE = "base"
"""The column of the bare base."""
STDERR = "_stderr"
"""Behind the name of a metric: its standard error, by the harness and in MLflow."""


class TaskScore(NamedTuple):
    """A metric of one column."""

    value: float
    stderr: float | None
    """The harness's standard error over the task's documents; None where it has none."""

    @property
    def text(self) -> str:
        """As the harness writes it."""
        return f"{self.value:.4f}" if self.stderr is None else f"{self.value:.4f} ± {self.stderr:.4f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """One task, measured with the same settings in every column."""

    task: str
    settings: Mapping[str, object]
    """What decides the numbers beside the model: versions, limit, few-shot examples, ..."""
    higher_is_better: Mapping[str, bool]
    """By metric, where the harness knows it."""
    columns: Mapping[str, Mapping[str, TaskScore]]
    """By trial number or `BASE`, and by metric (`acc`, or `exact_match/strict` with the name of its filter)."""

    @property
    def metrics(self) -> list[str]:
        """All metrics, in the harness's order."""
        return list(dict.fromkeys(name for column in self.columns.values() for name in column))

    def with_earlier(self, earlier: TaskScores | None) -> TaskScores:
        """These scores, beside those of other columns that were measured earlier with the same settings."""
        if earlier is None or earlier.settings != self.settings:
            return self
        return TaskScores(
            task=self.task,
            settings=self.settings,
            higher_is_better=self.higher_is_better,
            columns={**earlier.columns, **self.columns},
        )


def column_order(name: str) -> tuple[int, str]:
    """What columns are sorted by: those of the bare base first (of several quantizations), then trials by number."""
    return (int(name), "") if name.isdigit() else (-1, name)
