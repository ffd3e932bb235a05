"""The verdict: the best configuration, which cheaper ones are as good, and how sure that is.

`decide` finds it and `sentences` says it in words; every number of a sentence is in `Findings.rows` or `facts`.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_lab.analysis.comparison import LEVEL, difference, example_difference_of, held_out_value, holm, value_interval
from lora_lab.analysis.replicates import Noise, ReplicateGroup, noise_floor, replicate_groups
from lora_lab.analysis.selection import search_trials
from lora_lab.analysis.verdict_words import STATE_WORDS, Fact, facts, sentences
from lora_lab.study.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.paired import Difference, Evidence, ExampleLosses
    from lora_lab.study.results import TrialResult, TrialState
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.sweep import Cost

__all__ = [
    "STATE_WORDS",
    "Decision",
    "Fact",
    "Findings",
    "Noise",
    "Standing",
    "VerdictRow",
    "decide",
    "facts",
    "sentences",
]

LOSSES = ("eval_loss", "forgetting")
LESS_TIME = 0.95
"""Less than this share of the other's training time is cheaper; more is within its jitter."""

Decision = Literal["best", "equivalent", "worse", "undecided", "costlier", "not tested"]
"""What the test says of a configuration: as good as the best (`equivalent`), worse than it by the margin or more
(`worse`), or neither (`undecided`); there is nothing to test for a `costlier` one, nor without replicates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A configuration as the verdict sees it."""

    number: int
    """Of its trial in the search; of several seeds, of the one with the lowest loss."""
    config: TrialConfig
    value: float
    """Nats per token: the mean over the retrainings with fresh seeds; without any, over its seeds in the search."""
    search_value: float
    """Nats per token of that trial in the search; as one picked from many it flatters the best."""
    runs: int
    """Trainings behind `value`."""
    retrainings: int
    """Retrainings with a value."""
    lost_retrainings: int
    """Retrainings, or seeds where there are none, that diverged, failed or were stopped."""
    spread: float | None
    """Standard deviation over at least two trainings, in nats."""
    trainable_params: float
    """Infinite where it is not known; so are the next two."""
    peak_memory_bytes: float
    train_seconds: float
    cost_metric: Cost
    """What the study calls cheap, `verdict.cost`."""

    @property
    def cost(self) -> tuple[float, float, float, int]:
        """What orders configurations by their cost: that of the study, trained parameters, training time, number."""
        costs: dict[Cost, float] = {
            "trainable_params": self.trainable_params,
            "peak_memory_bytes": self.peak_memory_bytes,
            "train_seconds": self.train_seconds,
        }
        return costs[self.cost_metric], self.trainable_params, self.train_seconds, self.number

    def is_cheaper_than(self, other: Standing) -> bool:
        """Whether it costs less; training time, which jitters, only where it is clearly less."""
        if self.cost_metric != "train_seconds" and self.cost[:2] != other.cost[:2]:
            return self.cost[:2] < other.cost[:2]
        return self.train_seconds < LESS_TIME * other.train_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictRow:
    """One configuration against the best one, in nats per token."""

    standing: Standing
    value_interval: tuple[float, float] | None
    """95% interval of its value by the noise floor."""
    estimate: float
    """Its value minus the best one's, over common seeds where there are any; 0 for the best."""
    interval: tuple[float, float] | None
    """95%, two-sided, of `estimate`; None for a single run, unless single runs are compared over examples."""
    evidence: Evidence | None
    """What `interval` rests on."""
    p: float | None
    """One-sided, against "worse than the best by the margin or more"; None: not tested."""
    corrected_p: float | None
    """Holm-corrected over all configurations that were tested."""
    within_margin: bool
    """Whether the estimate lies within the margin, which alone proves nothing."""
    decision: Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What the trials say about the question, and how sure that is."""

    metric: str
    base_loss: float
    """The bare base, nats per token."""
    margin_share: float
    states: Mapping[TrialState, int]
    """Search trials by state."""
    retrained: int
    """Retrainings with fresh seeds, whatever became of them."""
    best: Standing | None
    margin: float
    """Nats above the best within which a configuration is a tie; 0 where nothing beats the base."""
    equivalent: tuple[Standing, ...]
    """The tie, cheapest first; the best is one of them."""
    noise: Noise | None
    """None: no noise floor was measured."""
    tested: bool
    """Whether the tie rests on a test; else on single runs within the margin."""
    rows: tuple[VerdictRow, ...]
    """The best, then the others by cost: all that were trained at least twice, and single runs within the margin."""
    held_out_value: float | None
    """What the choice of the best is worth on a seed that did not make it; None where fresh seeds say it already."""

    @property
    def cheapest(self) -> Standing | None:
        """The cheapest configuration that ties with the best: the recommended one."""
        return self.equivalent[0] if self.equivalent else None

    @property
    def gain(self) -> float:
        """Nats by which the best is below the bare base; 0 or less where nothing helped."""
        return self.base_loss - self.best.value if self.best else 0.0

    @property
    def helped(self) -> bool:
        """Whether any configuration is better than the bare base."""
        return self.gain > 0


def decide(
    results: Sequence[TrialResult],
    base_loss: float,
    margin: float,
    metric: str = "eval_loss",
    *,
    losses: Mapping[int, ExampleLosses] | None = None,
    cost: Cost = "trainable_params",
) -> Findings:
    """Find the best configuration and the cheapest one that is as good.

    Where finalists were retrained, only they can be the best, by the mean of their fresh seeds: a single run picked
    from many looks better than it is. Elsewhere the best is the lowest mean over seeds, or the lowest single run.

    A cheaper configuration is as good when a one-sided paired test at 5% rejects that it is worse than the best by
    `margin` times the best one's gain over `base_loss` or more (non-inferiority), Holm-corrected over all cheaper
    configurations with replicates. The best is itself picked as the lowest mean; that errs to the safe side here:
    "within the margin of every other" is tested by the hardest of its comparisons, which is the one with the lowest
    mean (intersection-union test, Berger 1982; Hsu 1984, "multiple comparisons with the best"). Standard errors pool
    the study's noise floor (`comparison.difference`). Without replicates the tie is what lies within the margin by
    its single run, and `tested` is off.

    Args:
        results: every trial of the study, retrainings included.
        base_loss: the metric of the bare base, in nats per token (0 for `forgetting`).
        margin: share of the gain over the base, `verdict.margin` of the study file.
        metric: `eval_loss` or `forgetting`; lower is better.
        losses: by trial number, the metric on every evaluation example; then the intervals also cover other
            examples of this kind, not only other seeds.
        cost: what makes a configuration cheaper, `verdict.cost` of the study file.

    Raises:
        InputError: `metric` is not a loss, or `base_loss` is not finite.

    """
    if metric not in LOSSES:
        raise InputError(f"the verdict needs a loss ({' or '.join(LOSSES)}), but metric is {metric}")
    if not math.isfinite(base_loss):
        raise InputError(f"base_loss must be finite, but is {base_loss}: the bare base cannot be evaluated")
    groups = replicate_groups(results, metric)
    noise = noise_floor(groups)
    candidates = _candidates(groups)
    standings = {group.number: _standing(group, cost) for group in groups}
    best = min(candidates, key=lambda group: (group.mean, standings[group.number].cost), default=None)
    width = max(0.0, margin * (base_loss - best.mean)) if best else 0.0
    tested = noise is not None and best is not None and len(best.values) > 1
    rows: tuple[VerdictRow, ...] = ()
    if best:
        floor = noise if tested else None
        rows = _rows(groups, best, standings, margin=width, noise=floor, losses=losses or {})
    tied = [
        row.standing for row in rows if row.decision in ("best", "equivalent") or (not tested and row.within_margin)
    ]
    return Findings(
        metric=metric,
        base_loss=base_loss,
        margin_share=margin,
        states=Counter(result.state for result in search_trials(results)),
        retrained=sum(result.replicate > 0 for result in results),
        best=standings[best.number] if best else None,
        margin=width,
        equivalent=tuple(sorted(tied, key=lambda standing: standing.cost)),
        noise=noise,
        tested=tested,
        rows=rows,
        held_out_value=held_out_value(candidates) if best and len(best.values) > 1 and not best.retrainings else None,
    )


def _candidates(groups: Sequence[ReplicateGroup]) -> list[ReplicateGroup]:
    """Configurations that can be the best: the retrained ones; else those with most seeds; else all."""
    retrained = [group for group in groups if group.retrainings]
    if retrained:
        return retrained
    replicated = [group for group in groups if len(group.values) > 1]
    if 2 * len(replicated) <= len(groups):
        return list(groups)
    most = max(len(group.values) for group in replicated)
    return [group for group in replicated if len(group.values) == most]


def _standing(group: ReplicateGroup, cost: Cost) -> Standing:
    return Standing(
        number=group.number,
        config=group.config,
        value=group.mean,
        search_value=group.search_value,
        runs=len(group.values),
        retrainings=group.retrainings,
        lost_retrainings=group.lost,
        spread=group.spread,
        trainable_params=_or_infinite(group.metric_mean("trainable_params")),
        peak_memory_bytes=_or_infinite(group.metric_mean("peak_memory_bytes")),
        train_seconds=_or_infinite(group.metric_mean("train_seconds")),
        cost_metric=cost,
    )


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _rows(
    groups: Sequence[ReplicateGroup],
    best: ReplicateGroup,
    standings: Mapping[int, Standing],
    *,
    margin: float,
    noise: Noise | None,
    losses: Mapping[int, ExampleLosses],
) -> tuple[VerdictRow, ...]:
    """The table of the verdict; `noise` is None where nothing is tested."""
    champion = standings[best.number]
    others = sorted((g for g in groups if g is not best), key=lambda group: standings[group.number].cost)
    tested = {g.number: difference(g, best, noise, losses) for g in others if noise and len(g.values) > 1}
    family = [g.number for g in others if g.number in tested and standings[g.number].is_cheaper_than(champion)]
    p_values = [tested[number].p_not_below(margin) for number in family]
    corrected = dict(zip(family, zip(p_values, holm(p_values), strict=True), strict=True))
    rows = [_row(champion, best, None, None, noise=noise, estimate=0.0, margin=margin, decision="best")]
    for group in others:
        p_value = corrected.get(group.number)
        apart = tested.get(group.number)
        decision = _decision(apart, p_value, margin)
        if apart is None and noise is None:
            apart = example_difference_of(group, best, losses)
        estimate = apart.mean if apart else group.mean - best.mean
        if decision != "not tested" or estimate <= margin:
            standing = standings[group.number]
            rows.append(
                _row(standing, group, apart, p_value, noise=noise, estimate=estimate, margin=margin, decision=decision)
            )
    return tuple(rows)


def _decision(apart: Difference | None, p_value: tuple[float, float] | None, margin: float) -> Decision:
    if apart is None:
        return "not tested"
    if p_value is None:
        return "costlier"
    if p_value[1] <= LEVEL:
        return "equivalent"
    return "worse" if apart.interval()[0] >= margin else "undecided"


def _row(
    standing: Standing,
    group: ReplicateGroup,
    apart: Difference | None,
    p_value: tuple[float, float] | None,
    *,
    noise: Noise | None,
    estimate: float,
    margin: float,
    decision: Decision,
) -> VerdictRow:
    p, corrected_p = p_value or (None, None)
    return VerdictRow(
        standing=standing,
        value_interval=value_interval(group, noise),
        estimate=estimate,
        interval=apart.interval() if apart else None,
        evidence=apart.evidence if apart else None,
        p=p,
        corrected_p=corrected_p,
        within_margin=estimate <= margin,
        decision=decision,
    )
