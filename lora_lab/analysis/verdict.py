"""The verdict: the best configuration, which cheaper ones are as good, and how sure that is.

`decide` finds it and `sentences` says it in words; every number of a sentence is in `Findings.rows` or `facts`.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from lora_lab.analysis.comparison import (
    LEVEL,
    difference,
    example_difference_of,
    held_out_value,
    holm,
    value_interval,
    within,
)
from lora_lab.analysis.findings import Decision, Findings, Standing, VerdictRow
from lora_lab.analysis.noise import Noise, noise_floor
from lora_lab.analysis.replicates import ReplicateGroup, replicate_groups
from lora_lab.analysis.selection import search_trials
from lora_lab.common.errors import InputError
from lora_lab.study.measures import EVAL_LOSS, MEASURES, TRAINABLE_PARAMS, costs, tie_width

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_lab.analysis.paired import Difference, ExampleLosses
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult


def decide(
    results: Sequence[TrialResult],
    base_value: float,
    margin: float,
    measure: Measure = EVAL_LOSS,
    *,
    absolute_margin: float | None = None,
    losses: Mapping[int, ExampleLosses] | None = None,
    cost: str = TRAINABLE_PARAMS.name,
) -> Findings:
    """Find the best configuration and the cheapest one that is as good.

    Where finalists were retrained, only they can be the best, by the mean of their fresh seeds: a single run picked
    from many looks better than it is. Elsewhere the best is the lowest mean over seeds, or the lowest single run. Of a
    score, which is the better the larger, the same holds of its negative.

    A cheaper configuration is as good when a one-sided paired test at 5% rejects that it is worse than the best by
    `margin` times the best one's gain over `base_value` or more (non-inferiority), Holm-corrected over all cheaper
    configurations with replicates. The best is itself picked as the lowest mean; that errs to the safe side here:
    "within the margin of every other" is tested by the hardest of its comparisons, which is the one with the lowest
    mean (intersection-union test, Berger 1982; Hsu 1984, "multiple comparisons with the best"). Standard errors are
    those of `comparison.contrast`. Without replicates the tie is what lies within the margin by its single run, and
    `tested` is off.

    Args:
        results: every trial of the study, retrainings included.
        base_value: what the bare base has.
        margin: share of the gain over the base, `verdict.margin` of the study file.
        measure: what configurations are judged by.
        absolute_margin: `verdict.absolute_margin` of the study file, which replaces `margin`.
        losses: by trial number, the loss on every evaluation example; then the intervals also cover other
            examples of this kind, not only other seeds. Of use where eval_loss is judged.
        cost: what makes a configuration cheaper, `verdict.cost` of the study file.

    Raises:
        InputError: nothing is gained by `measure`, or the base has no finite value.

    """
    if not measure.gain:
        judged = " or ".join(one.name for one in MEASURES.values() if one.gain)
        raise InputError(f"the verdict needs what the bare base has too ({judged}), but measure is {measure.name}")
    if not math.isfinite(base_value):
        raise InputError(f"base_value must be finite, but is {base_value}: the bare base cannot be evaluated")
    groups = replicate_groups(results, measure)
    noise = noise_floor(groups)
    rivals = candidates(groups)
    standings = {group.number: standing_of(group, cost) for group in groups}
    best = min(rivals, key=lambda group: (group.mean, standings[group.number].cost), default=None)
    width = tie_width(margin, absolute_margin, measure.gain_over(base_value, best.value)) if best else 0.0
    tested = best is not None and is_tested(best, noise)
    rows: tuple[VerdictRow, ...] = ()
    if best:
        champion = standings[best.number]
        family = {number for number, standing in standings.items() if standing.is_cheaper_than(champion)}
        rows = compare(groups, best, standings, family, margin=width, noise=noise, losses=losses or {})
    tied = [
        row.standing for row in rows if row.decision in ("best", "equivalent") or (not tested and row.within_margin)
    ]
    return Findings(
        measure=measure,
        base_value=base_value,
        margin_share=margin,
        absolute_margin=absolute_margin,
        states=Counter(result.state for result in search_trials(results)),
        retrained=sum(result.replicate > 0 for result in results),
        best=standings[best.number] if best else None,
        margin=width,
        equivalent=tuple(sorted(tied, key=lambda standing: standing.cost)),
        noise=noise,
        tested=tested,
        rows=rows,
        held_out_value=_held_out(rivals, best) if best else None,
    )


def _held_out(rivals: Sequence[ReplicateGroup], best: ReplicateGroup) -> float | None:
    """The value of the best on a seed that did not choose it; None where fresh seeds say it already."""
    loss = held_out_value(rivals) if len(best.values) > 1 and not best.retrainings else None
    return None if loss is None else best.measure.as_loss(loss)


def candidates(groups: Sequence[ReplicateGroup]) -> list[ReplicateGroup]:
    """Configurations that can be the best: the retrained ones; else those with most seeds; else all."""
    retrained = [group for group in groups if group.retrainings]
    if retrained:
        return retrained
    replicated = [group for group in groups if len(group.values) > 1]
    if 2 * len(replicated) <= len(groups):
        return list(groups)
    most = max(len(group.values) for group in replicated)
    return [group for group in replicated if len(group.values) == most]


def is_tested(best: ReplicateGroup, noise: Noise | None) -> bool:
    """Whether a tie with the best can rest on a test: on a noise floor, and on replicates of the best itself."""
    return noise is not None and len(best.values) > 1


def standing_of(group: ReplicateGroup, cost: str) -> Standing:
    """A configuration with its value and its costs, as the verdict orders it."""
    return Standing(
        number=group.number,
        config=group.config,
        label=group.label,
        value=group.value,
        search_value=group.measure.as_loss(group.search_value),
        runs=len(group.values),
        retrainings=group.retrainings,
        lost_retrainings=group.lost,
        spread=group.spread,
        costs={name: mean for name in costs() if (mean := group.metric_mean(name)) is not None},
        cost_metric=cost,
    )


def compare(
    groups: Sequence[ReplicateGroup],
    best: ReplicateGroup,
    standings: Mapping[int, Standing],
    family: Collection[int],
    *,
    margin: float,
    noise: Noise | None,
    losses: Mapping[int, ExampleLosses],
) -> tuple[VerdictRow, ...]:
    """Compare configurations with the best one: the best's row first, then the others by cost.

    Args:
        groups: the configurations, the best among them.
        best: the one that the others are measured against.
        standings: of every configuration, by its number.
        family: numbers of the configurations to test against the margin; those with replicates share one Holm
            correction, and the other replicated ones are `costlier`.
        margin: in the unit of the measure.
        noise: the study's noise floor.
        losses: by trial number, what it measured on every evaluation example.

    Returns:
        Single runs beyond the margin have no row.

    """
    floor = noise if is_tested(best, noise) else None
    others = sorted((g for g in groups if g is not best), key=lambda group: standings[group.number].cost)
    tested = {g.number: difference(g, best, floor, losses) for g in others if floor and len(g.values) > 1}
    members = [number for number in tested if number in family]
    p_values = [tested[number].p_not_below(margin) for number in members]
    corrected = dict(zip(members, zip(p_values, holm(p_values), strict=True), strict=True))
    rows = [_row(standings[best.number], best, None, None, noise=floor, estimate=0.0, margin=margin, decision="best")]
    for group in others:
        p_value = corrected.get(group.number)
        apart = tested.get(group.number)
        decision = _decision(apart, p_value, margin)
        if apart is None and floor is None:
            apart = example_difference_of(group, best, losses)
        estimate = apart.mean if apart else group.mean - best.mean
        if decision != "not tested" or within(estimate, margin):
            standing = standings[group.number]
            rows.append(
                _row(standing, group, apart, p_value, noise=floor, estimate=estimate, margin=margin, decision=decision)
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
        apart=apart,
        p=p,
        corrected_p=corrected_p,
        within_margin=within(estimate, margin),
        decision=decision,
    )
