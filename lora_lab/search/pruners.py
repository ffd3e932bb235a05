"""The pruners of a study file; their unit of resource is one evaluation, by default one epoch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.study import StudyDirection

from lora_lab.search.records import is_replicate
from lora_lab.study.space import choices

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from lora_lab.study.settings import TrainingSettings
    from lora_lab.study.spec import StudySpec

KEPT_AT_A_RUNG = 2
"""One in so many trials goes on past a rung."""


class BetterHalfPruner(BasePruner):
    """Asynchronous successive halving (arXiv:1810.05934) that compares a pack as a whole.

    Rungs are the evaluations 1, 2, 4, 8, ...; there the better half goes on, at least one, of all trials that
    have *reported* that evaluation. Optuna's SuccessiveHalvingPruner compares with the trials it was *asked*
    about before, and remembers each answer: of a pack of eight it keeps one when asked best first and all when
    asked worst first, and after a kill it lets pass whom it had rejected. Nothing is written here. The median
    pruner compares with completed trials, so it has no say within the first pack.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is in the worse half at the rung it stands on."""
        rung = trial.last_step
        if rung is None or not is_rung(rung):
            return False
        value = trial.intermediate_values[rung]
        if math.isnan(value):
            return True
        sign = -1 if study.direction is StudyDirection.MAXIMIZE else 1
        others = (one for one in study.get_trials(deepcopy=False) if not is_replicate(one))
        reported = sorted(
            sign * one.intermediate_values[rung]
            for one in others
            if not math.isnan(one.intermediate_values.get(rung, math.nan))
        )
        return sign * value > reported[max(1, len(reported) // KEPT_AT_A_RUNG) - 1]


def is_rung(evaluation: int) -> bool:
    """Whether trials are compared at this evaluation: 1, 2, 4, 8, ..."""
    return not evaluation & (evaluation - 1)


def build_pruner(spec: StudySpec) -> BasePruner:
    """The pruner that a study file names."""
    match spec.sweep.pruner:
        case "asha":
            return BetterHalfPruner()
        case "hyperband":
            return HyperbandPruner(
                min_resource=1, max_resource=_longest(spec) or "auto", reduction_factor=KEPT_AT_A_RUNG
            )
        case "median":
            return MedianPruner()
        case "none":
            return NopPruner()


def planned_evaluations(training: TrainingSettings) -> int | None:
    """How often a trial is evaluated, None where that depends on its number of steps."""
    if training.eval_steps is not None or training.max_steps is not None:
        return None
    return training.num_train_epochs


def _longest(spec: StudySpec) -> int | None:
    """Evaluations of the longest trial, None where that depends on the number of steps."""
    searched = spec.sweep.parameters
    if planned_evaluations(spec.training) is None or {"eval_steps", "max_steps"} & searched.keys():
        return None
    return max(int(str(epochs)) for epochs in choices(spec, "num_train_epochs"))
