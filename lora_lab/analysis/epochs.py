"""Learning curves over replicates, and where overfitting begins."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lora_lab.analysis.comparison import LEVEL
from lora_lab.analysis.paired import Difference, seed_difference
from lora_lab.analysis.replicates import replicate_groups, without_seed
from lora_lab.study.trajectory import EPOCHS, shared_rates

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPoint:
    """One point of a learning curve."""

    at: float
    """Epochs, or optimizer steps where `eval_steps` is set."""
    value: float
    """Mean over the replicates, nats per token."""
    interval: tuple[float, float] | None
    """95%, over the replicates; None for a single one."""
    rise: float
    """Above the curve's minimum, nats."""
    p: float | None
    """One-sided, paired over the replicates, corrected, against "no higher than the minimum"; None: not tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochCurve:
    """The learning curve of one configuration."""

    number: int
    """Of the trial that stands for it."""
    numbers: tuple[int, ...]
    unit: Literal["epoch", "step"]
    points: tuple[EpochPoint, ...]
    runs: int
    apart: bool
    """Whether the points are trainings of their own length, because the schedule depends on the length."""
    minimum_at: float
    minimum_interval: tuple[float, float] | None
    """First and last point not shown to lie above the minimum (95%); None for a single training."""
    overfits: bool | None
    """Whether the end is shown to lie above the minimum (5%); None: not tested."""
    onset: float | None
    """The first point after the minimum shown to lie above it."""


def epoch_curves(results: Sequence[TrialResult]) -> list[EpochCurve]:
    """One curve for every configuration with at least two points, longest training only, best end first.

    Where the learning rate does not depend on the total length, the evaluations of the longest training are the
    curve. Elsewhere epoch k of a longer run is not a run of k epochs, so the curve joins the ends of trainings of
    their own. Whether a point lies above the minimum is a paired t test over the replicates, Bonferroni-corrected
    over the other points; that also covers the minimum being picked as the lowest (tested by simulation). Few
    replicates say little about the spread at one point, so that of the whole curve stands in where it is larger.
    """
    families: dict[TrialConfig, list[ReplicateGroup]] = {}
    for group in replicate_groups(results):
        families.setdefault(_without_length(group.config), []).append(group)
    curves = [curve for members in families.values() if (curve := _family_curve(members)) is not None]
    return sorted(curves, key=lambda curve: (curve.points[-1].value, curve.number))


def _without_length(config: TrialConfig) -> TrialConfig:
    plain = without_seed(config)
    return plain.changed(training={EPOCHS: 1})


def _family_curve(groups: Sequence[ReplicateGroup]) -> EpochCurve | None:
    longest = max(groups, key=lambda group: group.config.training.num_train_epochs)
    training = longest.config.training
    if shared_rates(training) != "all":
        ends = sorted(groups, key=lambda group: group.config.training.num_train_epochs)
        values = _table([group.values for group in ends])
        return _curve(longest, [float(g.config.training.num_train_epochs) for g in ends], values, "epoch", apart=True)
    curves = [run.curve for run in longest.runs.values() if run.curve]
    shared = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    values = np.array([[curve[evaluation] for evaluation in shared] for curve in curves])
    scale = training.eval_steps or 1
    at = [float(evaluation * scale) for evaluation in shared]
    return _curve(longest, at, values, "step" if training.eval_steps else "epoch", apart=False)


def _table(values: Sequence[Mapping[int, float]]) -> np.ndarray:
    """[seeds, points]: the values at the seeds that all points have; without two of these, their means."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values)))
    if len(seeds) < 2:
        return np.array([[statistics.fmean(by_seed.values()) for by_seed in values]])
    return np.array([[by_seed[seed] for by_seed in values] for seed in seeds])


def _curve(
    group: ReplicateGroup, at: Sequence[float], values: np.ndarray, unit: Literal["epoch", "step"], *, apart: bool
) -> EpochCurve | None:
    """The curve of [runs, points] values; None below two points."""
    if len(at) < 2 or not np.isfinite(values).all():
        return None
    means = values.mean(axis=0)
    lowest = int(means.argmin())
    p_values = [_p_above(values, index, lowest) for index in range(len(at))]
    points = tuple(
        EpochPoint(
            at=at[index],
            value=float(means[index]),
            interval=_interval(values[:, index]),
            rise=float(means[index] - means[lowest]),
            p=p_values[index] if index != lowest else None,
        )
        for index in range(len(at))
    )
    above = [p is not None and p <= LEVEL for p in p_values]
    near = [point.at for point, shown in zip(points, above, strict=True) if not shown]
    tested = len(values) > 1
    return EpochCurve(
        number=group.number,
        numbers=tuple(run.number for run in group.runs.values()),
        unit=unit,
        points=points,
        runs=len(values),
        apart=apart,
        minimum_at=at[lowest],
        minimum_interval=(near[0], near[-1]) if tested else None,
        overfits=above[-1] if tested else None,
        onset=next((at[index] for index in range(lowest + 1, len(at)) if above[index]), None),
    )


def _p_above(values: np.ndarray, index: int, lowest: int) -> float | None:
    """Corrected one-sided p-values that a point is no higher than the curve's lowest one, of [runs, points] values."""
    runs, points = values.shape
    if runs < 2:
        return None
    residuals = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    degrees = (runs - 1) * (points - 1)
    apart = values[:, index] - values[:, lowest]
    # a difference of two points has twice the variance of one
    spread = max(float(apart.std(ddof=1)), math.sqrt(2 * float((residuals**2).sum()) / degrees))
    rise = Difference(
        mean=float(apart.mean()),
        se=spread / math.sqrt(runs),
        degrees_of_freedom=degrees,
        evidence="seeds",
        seeds=runs,
    )
    corrected: float = (points - 1) * rise.p_not_above(0.0)
    return min(1.0, corrected)


def _interval(values: np.ndarray) -> tuple[float, float] | None:
    over_seeds = seed_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    return None if over_seeds is None else over_seeds.interval()
