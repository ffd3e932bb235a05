"""Replicates: trainings of one configuration that differ in nothing but `training.seed`."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import measured, retrainings, search_trials
from lora_lab.analysis.wording import config_label
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicateGroup:
    """One configuration and its trainings, judged by one measure.

    All values are losses: those of a score are negated, so that less is better everywhere.

    Where finalists were retrained with fresh seeds (`confirm`), only those trainings speak for the configuration:
    the run of the search was picked for its value, and so flatters.
    """

    measure: Measure
    number: int
    """The trial of the search that stands for it: of several seeds, the one with the lowest loss."""
    config: TrialConfig
    """Of that trial."""
    searched: tuple[str, ...]
    """The parameters that the study searched in it."""
    search_value: float
    """Of that trial."""
    search_mean: float
    """Over its seeds in the search: what configurations can be ranked by on an equal footing."""
    runs: Mapping[int, TrialResult]
    """The trainings that speak for the configuration, by seed."""
    values: Mapping[int, float]
    """Their losses, by the same seeds."""
    numbers: tuple[int, ...]
    """All its trials in the search, also those without a value."""
    retrainings: int
    """Retrainings with a value; where there are any, `runs` are these."""
    lost: int
    """Trainings of the same kind as `runs` that ended without a value."""

    @property
    def label(self) -> str:
        """The configuration in a few words."""
        return config_label(self.config, self.searched)

    @property
    def mean(self) -> float:
        """The mean of `values`."""
        return statistics.fmean(self.values.values())

    @property
    def value(self) -> float:
        """The mean as it is written: that of a score turned back."""
        return self.measure.as_loss(self.mean)

    @property
    def spread(self) -> float | None:
        """Standard deviation of `values`; None for a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def trained(self) -> bool:
        """Whether at least one of `runs` is a training of its own, not read off another trial's."""
        return any(run.source is None for run in self.runs.values())

    def metric_mean(self, name: str) -> float | None:
        """Mean of another metric over `runs`; None where none of them measured it."""
        known = [value for run in self.runs.values() if (value := measured(run, name)) is not None]
        return statistics.fmean(known) if known else None


def replicate_groups(results: Sequence[TrialResult], measure: Measure = EVAL_LOSS) -> list[ReplicateGroup]:
    """Every configuration of the search that has a value, with its replicates, by the number that stands for it."""
    by_configuration: dict[TrialConfig, list[TrialResult]] = {}
    for trial in search_trials(results):
        by_configuration.setdefault(without_seed(trial.config), []).append(trial)
    # A seed that the search had already is no fresh one: its retraining is read off the trial that was picked.
    known = {result.number for result in search_trials(results)}
    fresh = [result for result in results if result.source not in known]
    groups = [_group(trials, fresh, measure) for trials in by_configuration.values()]
    return sorted((group for group in groups if group is not None), key=lambda group: group.number)


def group_of(number: int, groups: Sequence[ReplicateGroup]) -> ReplicateGroup | None:
    """The configuration that the trial of this number is a training of; None where that has no value."""
    return next((group for group in groups if number in group.numbers), None)


def without_seed(config: TrialConfig) -> TrialConfig:
    """The configuration with `training.seed` 0: equal for replicates."""
    return config.changed(training={"seed": 0})


def _group(trials: Sequence[TrialResult], fresh: Sequence[TrialResult], measure: Measure) -> ReplicateGroup | None:
    searched = _by_seed(trials, measure)
    if not searched:
        return None
    again = [repeat for trial in trials for repeat in retrainings(fresh, trial.number)]
    repeated = _by_seed(again, measure)
    runs = repeated or searched
    first, value = min(searched.values(), key=lambda pair: (pair[1], pair[0].number))
    tried = again or trials
    over = len({run.config.training.seed for run in tried if run.state != "running"})
    return ReplicateGroup(
        measure=measure,
        number=first.number,
        config=first.config,
        searched=tuple(first.params),
        search_value=value,
        search_mean=statistics.fmean(loss for _, loss in searched.values()),
        runs={seed: run for seed, (run, _) in runs.items()},
        values={seed: value for seed, (_, value) in runs.items()},
        numbers=tuple(trial.number for trial in trials),
        retrainings=len(repeated),
        lost=over - (len(repeated) if again else len(searched)),
    )


def _by_seed(trials: Sequence[TrialResult], measure: Measure) -> dict[int, tuple[TrialResult, float]]:
    """One training per seed: the same seed again is the same training, read off or repeated."""
    runs: dict[int, tuple[TrialResult, float]] = {}
    for trial in sorted(trials, key=lambda trial: (trial.source is not None, trial.number)):
        value = measured(trial, measure.name)
        if value is not None:
            runs.setdefault(trial.config.training.seed, (trial, measure.as_loss(value)))
    return dict(sorted(runs.items()))
