"""Samplers and pruners by the names of the study file."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

from optuna import pruners, samplers
from optuna.exceptions import ExperimentalWarning

from lora_lab.search.space import grid

if TYPE_CHECKING:
    from lora_lab.study.spec import StudySpec

REDUCTION_FACTOR = 2


def make_sampler(spec: StudySpec, existing_trials: int) -> samplers.BaseSampler:
    """The sampler; a resumed study gets another seed, so that it does not draw again what it drew before."""
    seed = spec.sweep.seed + 1_000_003 * existing_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match spec.sweep.sampler:
            case "tpe":
                return samplers.TPESampler(
                    seed=seed,
                    multivariate=not spec.sweep.multi_objective,
                    group=not spec.sweep.multi_objective and _is_conditional(spec),
                    constant_liar=True,
                    warn_independent_sampling=False,
                )
            case "grid":
                return samplers.GridSampler(grid(spec), seed=spec.sweep.seed)
            case "random":
                return samplers.RandomSampler(seed=seed)
            case "qmc":
                return samplers.QMCSampler(
                    seed=spec.sweep.seed,
                    scramble=True,
                    warn_independent_sampling=False,
                    warn_asynchronous_seeding=False,
                )
            case "gp":
                return samplers.GPSampler(seed=seed, warn_independent_sampling=False)
            case "nsga2":
                return samplers.NSGAIISampler(seed=seed)


def _is_conditional(spec: StudySpec) -> bool:
    return any(parameter.when for parameter in spec.sweep.parameters.values())


def make_pruner(spec: StudySpec) -> pruners.BasePruner:
    """The pruner; its resource is the number of the evaluation, which is the epoch unless `eval_steps` is set.

    With a reduction factor of 2 the rungs of ASHA lie at evaluations 1, 2, 4, ...: at each of them the better
    half goes on. It compares with trials that still run, so it prunes in the first pack already.
    """
    match spec.sweep.pruner:
        case "asha":
            return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION_FACTOR)
        case "hyperband":
            return pruners.HyperbandPruner(
                min_resource=1, max_resource=_most_evaluations(spec), reduction_factor=REDUCTION_FACTOR
            )
        case "median":
            return pruners.MedianPruner(n_startup_trials=4, n_min_trials=2)
        case "none":
            return pruners.NopPruner()


def _most_evaluations(spec: StudySpec) -> int:
    """Evaluations of the longest trial, as far as the settings tell; Hyperband spreads its rungs over them."""
    epochs = spec.sweep.parameters.get("num_train_epochs")
    if epochs is None:
        return max(2, spec.training.num_train_epochs)
    longest = max(epochs.values) if epochs.values is not None else epochs.max
    assert isinstance(longest, (int, float))
    return max(2, math.ceil(longest))
