"""Optuna's samplers and pruners for the words of a study file."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from lora_lab.study.settings import TrainingSettings
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import SweepSettings

KEPT_AT_A_RUNG = 2
"""One in so many trials goes on past a rung."""


def build_sampler(sweep: SweepSettings, number: int) -> BaseSampler:
    """The sampler for one trial.

    Its random numbers are a function of the sweep's seed and the trial's number, and of nothing else that
    happened in this process: a resumed study goes on with the draws that an undisturbed one would have made.
    The cells of a grid are enqueued, so there nothing is left to draw.
    """
    seed = _seed_of_trial(sweep.seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match sweep.sampler:
            case "tpe":
                return TPESampler(seed=seed)
            case "gp":
                return GPSampler(seed=seed, warn_independent_sampling=False)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=_population(sweep))
            case "qmc":
                # The sequence has one seed for the whole study; its position is kept in the storage.
                return QMCSampler(
                    seed=sweep.seed,
                    scramble=True,
                    independent_sampler=RandomSampler(seed=seed),
                    warn_independent_sampling=False,
                )
            case "random" | "grid":
                return RandomSampler(seed=seed)


def _seed_of_trial(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def _population(sweep: SweepSettings) -> int:
    """Optuna's 50 would make a study of 32 trials a random search; four generations or more evolve."""
    return max(4, min(50, (sweep.n_trials or 50) // 4))


def build_pruner(spec: StudySpec) -> BasePruner:
    """The pruner of a study; its unit of resource is one evaluation, by default one epoch.

    Successive halving has its rungs at evaluations 1, 2, 4, 8, ... and keeps the better half of the trials
    that reached a rung *so far*. So it prunes within the first pack, where the median pruner, which compares
    with completed trials, has nothing to compare with; and of three epochs two are rungs, where Optuna's
    default reduction to a quarter would have one.
    """
    match spec.sweep.pruner:
        case "asha":
            return SuccessiveHalvingPruner(min_resource=1, reduction_factor=KEPT_AT_A_RUNG)
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
    epochs = searched.get("num_train_epochs")
    if epochs is None:
        return spec.training.num_train_epochs
    ends = epochs.values or (epochs.max,)
    return max(int(end) for end in ends if isinstance(end, (int, float)))
