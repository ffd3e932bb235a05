"""How sure the trade-off is: which configurations lie on the Pareto front, and how large a volume it dominates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.replicates import replicate_groups
from lora_lab.common.errors import InputError
from lora_lab.study.measures import EVAL_LOSS, MEASURES, TRAINABLE_PARAMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult

BEYOND = 1.1
"""How far the box reaches beyond the worst values, so that the ends of a front count too."""
DRAWS = 200
"""Of the bootstrap."""
RARE = 0.05
"""Configurations that are on the front in a smaller share of draws are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontMember:
    """A configuration that lies on the front, or does in some draws."""

    number: int
    values: tuple[float, ...]
    """Means over its trainings: the measure first, then the axes, as in `Front.axes`."""
    on_front: bool
    """By the means."""
    probability: float | None
    """Share of draws in which it is on the front; None where no noise floor was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """The front over a measure and cost axes, with its uncertainty."""

    axes: tuple[str, ...]
    """The measure first; on each, its own direction is better."""
    members: tuple[FrontMember, ...]
    """By the first cost axis."""
    reference: tuple[float, ...]
    """The worst value seen on every axis."""
    hypervolume: float
    """Share that the front dominates of the box from the best values seen to a tenth beyond the worst: 0 to 1."""
    hypervolume_interval: tuple[float, float] | None
    """95%; None where no noise floor was measured."""
    log_axes: tuple[str, ...]
    """Axes whose share of the box is taken on a logarithmic scale."""


def front(
    results: Sequence[TrialResult],
    axes: Sequence[str] = (TRAINABLE_PARAMS.name,),
    measure: Measure = EVAL_LOSS,
) -> Front | None:
    """The Pareto front over configurations, by the means of their trainings; None where none has all the values.

    Uncertainty is a parametric bootstrap: in every draw each mean moves by the noise floor of its measure over the
    square root of its trainings, and the floor itself by its degrees of freedom (chi-square). Numbers of parameters,
    memory and time stay as they are. The interval is the basic one (reflected around the estimate), since noise
    makes a front look better than it is.

    Args:
        results: every trial of the study, retrainings included.
        axes: what the measure is traded against, names in `MEASURES`.
        measure: what configurations are judged by.

    """
    names = (measure.name, *axes)
    measures = [MEASURES[name] for name in names]
    groups = [group for group in replicate_groups(results, measure) if _losses(group, measures) is not None]
    if not groups:
        return None
    points = np.array([_losses(group, measures) for group in groups])
    logarithmic = [one.log and bool((points[:, i] > 0).all()) for i, one in enumerate(measures)]
    box = _Box.of(points, np.array(logarithmic))
    on_front = _nondominated(points)
    volume = box.dominated(points[on_front])
    runs = np.array([len(group.values) for group in groups])
    moved = _moved(points, runs, _spreads(results, measures))
    fronts = None if moved is None else np.array([_nondominated(draw) for draw in moved])
    members = [
        FrontMember(
            number=groups[i].number,
            values=tuple(_as_values(measures, points[i])),
            on_front=bool(on_front[i]),
            probability=None if fronts is None else float(fronts[:, i].mean()),
        )
        for i in np.lexsort((points[:, 0], points[:, 1] if len(names) > 1 else points[:, 0]))
        if on_front[i] or (fronts is not None and fronts[:, i].mean() >= RARE)
    ]
    return Front(
        axes=names,
        members=tuple(members),
        reference=tuple(_as_values(measures, points.max(axis=0))),
        hypervolume=volume,
        hypervolume_interval=None if moved is None or fronts is None else _volume_interval(volume, box, moved, fronts),
        log_axes=tuple(name for name, taken in zip(names, logarithmic, strict=True) if taken),
    )


def _losses(group: ReplicateGroup, measures: Sequence[Measure]) -> list[float] | None:
    """Means on axes on which less is better; None where one is not known."""
    known = [(one, group.metric_mean(one.name)) for one in measures]
    losses = [one.as_loss(mean) for one, mean in known if mean is not None]
    return losses if len(losses) == len(measures) else None


def _as_values(measures: Sequence[Measure], losses: np.ndarray) -> list[float]:
    return [one.as_loss(float(loss)) for one, loss in zip(measures, losses, strict=True)]


def _spreads(results: Sequence[TrialResult], measures: Sequence[Measure]) -> list[Noise | None]:
    """The noise floor of every axis that has one; costs are the same for every seed."""
    return [noise_floor(replicate_groups(results, one)) if one.noisy else None for one in measures]


def _nondominated(points: np.ndarray) -> np.ndarray:
    """[n] bool: no other point is as low on every axis and lower on one; of equal points the first stands for all."""
    no_higher = (points[:, None] <= points[None]).all(axis=2)
    lower = (points[:, None] < points[None]).any(axis=2)
    first = np.triu(no_higher & no_higher.T, k=1)
    return np.logical_not((no_higher & lower).any(axis=0) | first.any(axis=0))


@dataclass(frozen=True, slots=True)
class _Box:
    """The box from the best values seen to a little beyond the worst, as the unit cube.

    Axes without a range are left out.
    """

    low: np.ndarray
    span: np.ndarray
    logarithmic: np.ndarray

    @classmethod
    def of(cls, points: np.ndarray, logarithmic: np.ndarray) -> _Box:
        scaled = np.where(logarithmic, np.log(np.where(logarithmic, points, 1.0)), points)
        return cls(scaled.min(axis=0), scaled.max(axis=0) - scaled.min(axis=0), logarithmic)

    def dominated(self, points: np.ndarray) -> float:
        scaled = np.where(self.logarithmic, np.log(np.where(self.logarithmic, points, 1.0)), points)
        used = self.span > 0
        unit = np.clip((scaled[:, used] - self.low[used]) / (BEYOND * self.span[used]), 0.0, 1.0)
        return hypervolume(unit.tolist(), [1.0] * int(used.sum())) if used.any() else 1.0


def _moved(points: np.ndarray, runs: np.ndarray, spreads: Sequence[Noise | None]) -> np.ndarray | None:
    """[draws, n, axes]: the points as other seeds might have left them; None without any noise floor."""
    if all(noise is None for noise in spreads):
        return None
    rng = np.random.default_rng(0)
    moved = np.repeat(points[None], DRAWS, axis=0)
    for axis, noise in enumerate(spreads):
        if noise is not None:
            freedom = noise.degrees_of_freedom
            sd = noise.sd * np.sqrt(freedom / rng.chisquare(freedom, size=(DRAWS, 1)))
            moved[:, :, axis] += sd / np.sqrt(runs) * rng.standard_normal((DRAWS, len(points)))
    return moved


def _volume_interval(volume: float, box: _Box, moved: np.ndarray, fronts: np.ndarray) -> tuple[float, float]:
    drawn = [box.dominated(points[kept]) for points, kept in zip(moved, fronts, strict=True)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.clip(2 * volume - high, 0, 1)), float(np.clip(2 * volume - low, 0, 1))


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume that points dominate below a reference point, all axes minimized; exact in any dimension.

    The WFG algorithm (While, Bradstreet and Barone 2012): the sum of what each point dominates alone, after the
    ones before it. Points beyond the reference count for nothing. Meant for fronts of tens of points.

    Raises:
        InputError: a point has not as many values as the reference.

    """
    wrong = [len(point) for point in points if len(point) != len(reference)]
    if wrong:
        raise InputError(f"a point must have {len(reference)} values, as the reference has, but one has {wrong[0]}")
    kept = np.array([point for point in points if all(v < r for v, r in zip(point, reference, strict=True))])
    return _wfg(kept, np.array(reference, dtype=float)) if len(kept) else 0.0


def _wfg(points: np.ndarray, reference: np.ndarray) -> float:
    points = points[_nondominated(points)]
    points = points[np.argsort(points[:, 0])]
    if points.shape[1] == 1:
        return float(reference[0] - points[0, 0])
    if points.shape[1] == 2:
        heights = np.concatenate([reference[1:], points[:-1, 1]]) - points[:, 1]
        return float((reference[0] - points[:, 0]) @ heights)
    volume = 0.0
    for index, point in enumerate(points):
        others = np.maximum(points[index + 1 :], point)
        volume += float(np.prod(reference - point)) - (_wfg(others, reference) if len(others) else 0.0)
    return volume
