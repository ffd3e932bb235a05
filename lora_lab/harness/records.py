"""Scores as records of the journal, from where they go to MLflow: at the trial's run, of the base at the study's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.study.task_scores import STDERR
from lora_lab.tracking.records import Measured

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from lora_lab.study.task_scores import TaskScore, TaskScores


def records_of(scores: Sequence[TaskScores], trials: Collection[str]) -> Iterator[Measured]:
    """A record for each of these trials and for each bare base.

    Args:
        scores: Of all tasks; columns of other trials are left out.
        trials: The numbers of those that were measured now.
    """
    names = dict.fromkeys(name for task in scores for name in task.columns)
    for name in names:
        if name in trials:
            yield Measured(number=int(name), metrics=_metrics(scores, name))
        elif not name.isdigit():
            prefix = f"{name}/"
            yield Measured(number=None, metrics={prefix + key: value for key, value in _metrics(scores, name).items()})


def _metrics(scores: Sequence[TaskScores], name: str) -> dict[str, float]:
    """By `task/metric`, with standard errors beside."""
    found: dict[str, float] = {}
    for task in scores:
        column: Mapping[str, TaskScore] = task.columns.get(name, {})
        for metric, score in column.items():
            found[f"{task.task}/{metric}"] = score.value
            if score.stderr is not None:
                found[f"{task.task}/{metric}{STDERR}"] = score.stderr
    return found
