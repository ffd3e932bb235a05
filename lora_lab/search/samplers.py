"""Optuna's samplers for the words of a study file."""

from __future__ import annotations

import hashlib
import warnings
from typing import TYPE_CHECKING

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from lora_lab.study.sweep import SweepSettings


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
