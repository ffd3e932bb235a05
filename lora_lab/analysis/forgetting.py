"""What a gain on the domain costs on general text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.analysis.comparison import value_interval, within
from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.replicates import replicate_groups, without_seed
from lora_lab.analysis.wording import interval_text, nats, targets_text, value_text
from lora_lab.study.measures import FORGETTING, tie_width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.results import TrialResult

MIN_CONFIGURATIONS = 4
"""A rank correlation of fewer says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingPoint:
    """One configuration: means over its trainings, in nats per token."""

    number: int
    r: int
    targets: str
    layers: str
    runs: int
    gain: float
    """Below the bare base on the domain."""
    gain_interval: tuple[float, float] | None
    """95%; None where no noise floor was measured."""
    forgetting: float
    """Above the bare base on general text; negative where that improved."""
    forgetting_interval: tuple[float, float] | None
    on_front: bool
    """No other configuration has more gain and less forgetting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgettingTrade:
    """Forgetting against gain over a study."""

    points: tuple[ForgettingPoint, ...]
    """Most gain first."""
    rank_correlation: float | None
    """Spearman's, of gain and forgetting; None below four configurations."""
    margin: float
    """Nats."""
    gentlest: int | None
    """The trial that forgets least among those within the margin of the best gain, by their means."""
    sentence: str


def forgetting_trade(
    results: Sequence[TrialResult], base_loss: float, margin: float, absolute_margin: float | None = None
) -> ForgettingTrade | None:
    """Gain on the domain against loss on general text; None where forgetting was not measured.

    Args:
        results: every trial of the study, retrainings included.
        base_loss: eval_loss of the bare base, nats per token.
        margin: share of the best gain within which another configuration gains as much.
        absolute_margin: the same in nats; replaces `margin`.

    """
    groups = [group for group in replicate_groups(results) if group.metric_mean(FORGETTING.name) is not None]
    if not groups:
        return None
    forgetful = {without_seed(group.config): group for group in replicate_groups(results, FORGETTING)}
    gain_noise, noise = noise_floor(groups), noise_floor(list(forgetful.values()))
    points = [
        replace(
            _point(group, base_loss, gain_noise),
            forgetting_interval=value_interval(forgetful[without_seed(group.config)], noise),
        )
        for group in groups
    ]
    points = [replace(point, on_front=not any(_beats(other, point) for other in points)) for point in points]
    points.sort(key=lambda point: -point.gain)
    width = tie_width(margin, absolute_margin, points[0].gain)
    near = [point for point in points if within(points[0].gain - point.gain, width) and points[0].gain > 0]
    gentlest = min(near, key=lambda point: point.forgetting, default=None)
    return ForgettingTrade(
        points=tuple(points),
        rank_correlation=_rank_correlation(points),
        margin=width,
        gentlest=gentlest.number if gentlest else None,
        sentence=_sentence(points[0], gentlest, width),
    )


def _point(group: ReplicateGroup, base_loss: float, gain_noise: Noise | None) -> ForgettingPoint:
    forgetting = group.metric_mean(FORGETTING.name)
    assert forgetting is not None, "only configurations that measured it come here"
    loss = value_interval(group, gain_noise)
    lora = group.config.lora
    return ForgettingPoint(
        number=group.number,
        r=lora.r,
        targets=targets_text(lora),
        layers=value_text(lora.layers),
        runs=len(group.values),
        gain=base_loss - group.mean,
        gain_interval=(base_loss - loss[1], base_loss - loss[0]) if loss else None,
        forgetting=forgetting,
        forgetting_interval=None,
        on_front=True,
    )


def _beats(one: ForgettingPoint, other: ForgettingPoint) -> bool:
    no_worse = one.gain >= other.gain and one.forgetting <= other.forgetting
    return no_worse and (one.gain, one.forgetting) != (other.gain, other.forgetting)


def _rank_correlation(points: Sequence[ForgettingPoint]) -> float | None:
    gains, losses = (np.array(values) for values in zip(*((p.gain, p.forgetting) for p in points), strict=True))
    if len(points) < MIN_CONFIGURATIONS or not np.ptp(gains) or not np.ptp(losses):
        return None
    # Of ranks, equal values sharing one: scipy.stats, which has this, takes two seconds to import.
    ranks = [[(x < value).sum() + (x == value).sum() / 2 for value in x] for x in (gains, losses)]
    return float(np.corrcoef(ranks)[0, 1])


def _sentence(most: ForgettingPoint, gentlest: ForgettingPoint | None, width: float) -> str:
    if most.gain <= 0:
        return f"Nothing gained on the domain; its best trial ({most.number}) has {_forgotten(most)}."
    first = f"The most gain on the domain, {nats(most.gain)} nats (trial {most.number}), comes with {_forgotten(most)}"
    if gentlest is None or gentlest.number == most.number:
        than = "forgets less" if most.forgetting > 0 else "does better there"
        return f"{first}; nothing within the margin of that gain {than}."
    other = f"trial {gentlest.number} (r={gentlest.r} {gentlest.targets})"
    said = (
        f"forgets {nats(gentlest.forgetting)}"
        if gentlest.forgetting > 0
        else f"forgets nothing ({nats(gentlest.forgetting)})"
    )
    return f"{first}; within {nats(width)} nats of that gain by its mean, which is not a test, {other} {said}."


def _forgotten(point: ForgettingPoint) -> str:
    """What became of the loss on general text: it rose (forgetting), or it fell, which is none."""
    interval = point.forgetting_interval
    known = "" if interval is None else f" (95% interval {interval_text(interval)})"
    if point.forgetting <= 0:
        where = f"{nats(-point.forgetting)} nats below the bare base" if point.forgetting else "as on the bare base"
        return f"no forgetting: its loss on general text is {where}{known}"
    unsure = ", which may be none" if interval is not None and interval[0] <= 0 else ""
    return f"{nats(point.forgetting)} nats of forgetting on general text{known}{unsure}"
