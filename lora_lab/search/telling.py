"""What the sampler is told of a trial's outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState as Told

from lora_lab.search.records import outcome_of
from lora_lab.study.results import FINISHED_WITH_VALUE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from optuna.trial import FrozenTrial

    from lora_lab.search.records import Outcome
    from lora_lab.study.results import TrialState
    from lora_lab.study.sweep import SweepSettings

INFEASIBLE: tuple[TrialState, ...] = ("diverged", "out_of_memory")
SAMPLERS_BLIND_TO_PRUNED = ("gp", "nsga2")
"""These learn from completed trials only."""


def as_told(outcome: Outcome, sweep: SweepSettings, complete: Iterable[FrozenTrial]) -> tuple[Told, list[float] | None]:
    """Optuna's state and objective values for an outcome; an infeasible one is rated by the complete trials.

    TPE takes a pruned trial that violates a constraint as a bad one, and never sees a failed trial. GP and
    NSGA-II see completed trials only, so they get the worst values so far, which the constraint voids.
    """
    match outcome.state:
        case "complete" | "shared":
            return Told.COMPLETE, [outcome.metrics[metric.name] for metric in sweep.metric]
        case "failed":
            return Told.FAIL, None
        case "pruned":
            return Told.PRUNED, None
    worst = _worst_values(sweep, complete) if sweep.sampler in SAMPLERS_BLIND_TO_PRUNED else None
    return (Told.PRUNED, None) if worst is None else (Told.COMPLETE, worst)


def _worst_values(sweep: SweepSettings, complete: Iterable[FrozenTrial]) -> list[float] | None:
    ended = map(outcome_of, complete)
    valued = [one.metrics for one in ended if one is not None and one.state in FINISHED_WITH_VALUE]
    if not valued:
        return None
    return [
        (max if metric.goal == "minimize" else min)(metrics[metric.name] for metrics in valued)
        for metric in sweep.metric
    ]
