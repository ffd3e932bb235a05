"""Whether the loss ranks configurations as a metric does, and whether it would have chosen the same."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.selection import search_trials
from lora_lab.analysis.wording import distance_text, measure_text
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult

FEWEST = 5
"""Configurations below which a rank correlation says nothing."""
ROUNDED = 12
"""Decimals of a correlation that mean something: a complete one is 1."""
NORMAL = 1.959963984540054
"""The 97.5th percentile of the normal distribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgreementPoint:
    """One configuration: means over its seeds in the search."""

    number: int
    label: str
    eval_loss: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """A metric against the loss, over configurations."""

    measure: Measure
    points: Sequence[AgreementPoint]
    correlation: float | None
    """Spearman's, of lower loss with a better value: 1 where both rank alike; None where one of them never differs."""
    interval: tuple[float, float] | None
    """95%, by Bonett and Wright 2000, "Sample size requirements for estimating Pearson, Kendall and Spearman
    correlations"; None where the correlation is unknown, or complete."""
    by_loss: AgreementPoint
    """What the loss would have chosen."""
    by_metric: AgreementPoint
    """What the metric chooses."""

    @property
    def given_away(self) -> float:
        """By how much what the metric chooses is better, by the metric, than what the loss would have chosen."""
        return self.measure.gain_over(self.by_loss.value, self.by_metric.value)

    @property
    def sentence(self) -> str:
        """The rank correlation and the two choices in words."""
        return f"{self._correlation_text} {self._choice_text}"

    @property
    def _correlation_text(self) -> str:
        of = f"of {len(self.points)} configurations"
        if self.correlation is None:
            return f"Spearman's rank correlation {of} is unknown: loss or {self.measure.label} is the same in all."
        interval = "" if self.interval is None else f" (95%: {self.interval[0]:.2f} to {self.interval[1]:.2f})"
        return (
            f"Spearman's rank correlation of a lower loss with a better {self.measure.label} is "
            f"{self.correlation:.2f}{interval}, over the seeds of the search {of}."
        )

    @property
    def _choice_text(self) -> str:
        chosen, other, label = self.by_metric, self.by_loss, self.measure.label
        if self.given_away <= 0:
            return f"The loss would have chosen no worse: trial {other.number} has the best {label}, too."
        return (
            f"The loss would have chosen another one: trial {other.number} ({label} "
            f"{measure_text(self.measure, other.value)}) instead of trial {chosen.number} "
            f"({measure_text(self.measure, chosen.value)}), which is better by "
            f"{distance_text(self.measure, self.given_away)} as measured; other seeds and examples may say otherwise."
        )


def agreement(results: Sequence[TrialResult], measure: Measure) -> Agreement | None:
    """Compare the ranking by loss with that by another measure; None with fewer than five configurations.

    Args:
        results: every trial of the study; its retrainings do not count, as only finalists have any.
        measure: a score, or a loss other than eval_loss.
    """
    searched = search_trials(results)
    by_loss = {group.number: group for group in replicate_groups(searched, EVAL_LOSS)}
    groups = {number: group for group in replicate_groups(searched, measure) for number in group.numbers}
    points = [_point(group, groups[number], measure) for number, group in by_loss.items() if number in groups]
    if len(points) < FEWEST:
        return None
    correlation = _spearman([one.eval_loss for one in points], [measure.as_loss(one.value) for one in points])
    return Agreement(
        measure=measure,
        points=points,
        correlation=correlation,
        interval=None if correlation is None else _interval(correlation, len(points)),
        by_loss=min(points, key=lambda one: (one.eval_loss, one.number)),
        by_metric=min(points, key=lambda one: (measure.as_loss(one.value), one.eval_loss)),
    )


def _point(by_loss: ReplicateGroup, by_metric: ReplicateGroup, measure: Measure) -> AgreementPoint:
    return AgreementPoint(
        number=by_loss.number,
        label=by_loss.label,
        eval_loss=by_loss.search_mean,
        value=measure.as_loss(by_metric.search_mean),
    )


def _spearman(ones: Sequence[float], others: Sequence[float]) -> float | None:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # a second: only where needed

    if len(set(ones)) < 2 or len(set(others)) < 2:
        return None
    return round(float(spearmanr(ones, others).statistic), ROUNDED)


def _interval(correlation: float, count: int) -> tuple[float, float] | None:
    if abs(correlation) >= 1:
        return None
    half = NORMAL * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return math.tanh(math.atanh(correlation) - half), math.tanh(math.atanh(correlation) + half)
