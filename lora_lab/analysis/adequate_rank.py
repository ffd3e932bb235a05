"""The smallest adequate rank of every target set, each rank at the best learning rate that was tried for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_lab.analysis.comparison import value_interval, within
from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.verdict import candidates, compare, is_tested, standing_of
from lora_lab.analysis.wording import distance_text, measure_text, p_text, targets_text, value_text
from lora_lab.study.measures import TRAINABLE_PARAMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.analysis.findings import Decision, Findings, VerdictRow
    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.paired import ExampleLosses
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPoint:
    """One rank, at the configuration that speaks for it; every number is of that configuration."""

    r: int
    number: int
    """Of the trial."""
    learning_rate: float
    value: float
    """Mean over its trainings."""
    runs: int
    """Trainings behind `value`."""
    interval: tuple[float, float] | None
    """95% interval of `value`; None where no noise floor was measured."""
    tried: int
    """Configurations of this rank with a value; the best of many looks better than it is."""
    rates: int
    """Distinct learning rates among them."""
    difference: float
    """By how much it is worse than the best rank of the target set; 0 for that one."""
    p: float | None
    """One-sided, Holm-corrected, against "worse than the best rank by the margin or more"; None: not tested."""
    decision: Decision
    """As in the verdict: `equivalent` is shown to be within the margin; a rank above the best one is `costlier`."""
    within_margin: bool
    """Whether `difference` lies within the margin, which alone proves nothing."""
    trainable_params: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCurve:
    """A loss or a score against rank on one target set."""

    measure: Measure
    targets: str
    layers: str
    points: tuple[RankPoint, ...]
    """By rank."""
    margin: float
    """How much worse than the best rank still ties with it."""
    best_r: int
    smallest_adequate_r: int
    tested: bool
    """Whether `smallest_adequate_r` rests on a test; else on the means alone."""
    own_family: int
    """Comparisons that were corrected for one another apart from the verdict's; 0: the verdict's own p-values."""
    sentence: str


def rank_curves(
    results: Sequence[TrialResult], findings: Findings, losses: Mapping[int, ExampleLosses]
) -> list[RankCurve]:
    """One curve for every target set and choice of layers that was tried at two ranks or more.

    A rank below the best one is adequate when a configuration of it is shown not to be worse than the best by the
    margin or more. On the target set of the verdict's best configuration these are the verdict's own comparisons and
    corrected p-values. Other target sets have a best of their own, and so a family of comparisons of their own, by
    the same test; so has a study whose verdict leaves smaller ranks untested because they cost no less.

    A rank is shown at its best other settings (the learning rate above all): of the configurations that were tested
    at the one that passed, or the one with the lowest loss; without any, at the one with the lowest loss of those
    that could be the best.

    Args:
        results: every trial of the study, retrainings included.
        findings: of `decide` on the same results.
        losses: as in `decide`.

    """
    groups = replicate_groups(results, findings.measure)
    sets: dict[tuple[str, str], list[ReplicateGroup]] = {}
    for group in groups:
        lora = group.config.lora
        sets.setdefault((targets_text(lora), value_text(lora.layers)), []).append(group)
    return [
        _curve(key, members, findings, losses)
        for key, members in sorted(sets.items())
        if len({member.config.lora.r for member in members}) > 1
    ]


def _curve(
    key: tuple[str, str], groups: Sequence[ReplicateGroup], findings: Findings, losses: Mapping[int, ExampleLosses]
) -> RankCurve:
    best = _best(groups, findings)
    best_r = best.config.lora.r
    margin = findings.tie_width(best.value)
    rows, own_family = _rows(groups, best, findings, losses, margin)
    by_rank: dict[int, list[ReplicateGroup]] = {}
    for group in groups:
        by_rank.setdefault(group.config.lora.r, []).append(group)
    speakers = {r: best if r == best_r else _speaker(by_rank[r], rows) for r in sorted(by_rank)}
    points = [
        _point(by_rank[r], group, rows, best=best, noise=findings.noise, margin=margin) for r, group in speakers.items()
    ]
    tested = is_tested(best, findings.noise)
    adequate = [p.r for p in points if (p.decision in ("equivalent", "best") if tested else p.within_margin)]
    curve = RankCurve(
        measure=findings.measure,
        targets=key[0],
        layers=key[1],
        points=tuple(points),
        margin=margin,
        best_r=best_r,
        smallest_adequate_r=min(adequate),
        tested=tested,
        own_family=own_family,
        sentence="",
    )
    return replace(curve, sentence=_sentence(curve))


def _best(groups: Sequence[ReplicateGroup], findings: Findings) -> ReplicateGroup:
    """The verdict's best where it is one of these; else the best of these by the verdict's rule."""
    overall = findings.best.number if findings.best else None
    of_verdict = next((group for group in groups if group.number == overall), None)
    return of_verdict or min(candidates(groups), key=lambda group: (group.mean, group.config.lora.r, group.number))


def _rows(
    groups: Sequence[ReplicateGroup],
    best: ReplicateGroup,
    findings: Findings,
    losses: Mapping[int, ExampleLosses],
    margin: float,
) -> tuple[dict[int, VerdictRow], int]:
    """Comparisons of ranks with the best, by trial, and how many of them the verdict's family lacks."""
    known = {row.standing.number: row for row in findings.rows}
    smaller = {group.number for group in groups if group.config.lora.r < best.config.lora.r}
    same_best = findings.best is not None and findings.best.number == best.number
    if same_best and not any(number in known and known[number].decision == "costlier" for number in smaller):
        return known, 0
    cost = findings.best.cost_metric if findings.best else TRAINABLE_PARAMS.name
    standings = {group.number: standing_of(group, cost) for group in groups}
    rows = compare(groups, best, standings, smaller, margin=margin, noise=findings.noise, losses=losses)
    return {row.standing.number: row for row in rows}, sum(row.p is not None for row in rows)


def _speaker(groups: Iterable[ReplicateGroup], rows: Mapping[int, VerdictRow]) -> ReplicateGroup:
    """The configuration that stands for a rank other than the best one."""
    of_rank = list(groups)
    tested = [group for group in of_rank if group.number in rows and rows[group.number].p is not None]
    return min(
        tested or candidates(of_rank),
        key=lambda group: (
            group.number not in rows or rows[group.number].decision != "equivalent",
            group.mean,
            group.number,
        ),
    )


def _point(
    tried: Sequence[ReplicateGroup],
    group: ReplicateGroup,
    rows: Mapping[int, VerdictRow],
    *,
    best: ReplicateGroup,
    noise: Noise | None,
    margin: float,
) -> RankPoint:
    row = rows.get(group.number)
    apart = row.estimate if row else group.mean - best.mean
    return RankPoint(
        r=group.config.lora.r,
        number=group.number,
        learning_rate=group.config.training.learning_rate,
        value=group.value,
        runs=len(group.values),
        interval=value_interval(group, noise),
        tried=len(tried),
        rates=len({one.config.training.learning_rate for one in tried}),
        difference=apart,
        p=row.corrected_p if row else None,
        decision=row.decision if row else "not tested",
        within_margin=within(apart, margin),
        trainable_params=group.metric_mean(TRAINABLE_PARAMS.name),
    )


def _sentence(curve: RankCurve) -> str:
    where = curve.targets if curve.layers == "all" else f"{curve.targets}, layers {curve.layers}"
    tried = ", ".join(str(point.r) for point in curve.points)
    point = next(point for point in curve.points if point.r == curve.smallest_adequate_r)
    single_rate = max(one.rates for one in curve.points) < 2
    claim = (
        f"{where}: the smallest adequate rank is {point.r} of {tried}: {_found(curve, point)} "
        f"({distance_text(curve.measure, point.difference)} {curve.measure.worse} it; margin "
        f"{measure_text(curve.measure, curve.margin)})."
    )
    parts = [claim, *_open_questions(curve)]
    if curve.own_family:
        parts.append(f"Its comparisons ({curve.own_family}) are corrected apart from those of the verdict.")
    if single_rate:
        parts.append("Every rank had a single learning rate, which may suit some better than others.")
    return " ".join(parts)


def _found(curve: RankCurve, point: RankPoint) -> str:
    if point.r != curve.best_r and curve.tested:
        assert point.p is not None
        return f"shown to be within the margin of the best rank ({curve.best_r}), corrected p {p_text(point.p)}"
    if point.r != curve.best_r:
        return f"within the margin of the best rank ({curve.best_r}) by its mean, which is not a test"
    smaller = [one for one in curve.points if one.r < curve.best_r]
    if not curve.tested:
        return "the best rank, and no smaller one is within the margin"
    if smaller and all(one.decision == "not tested" for one in smaller):
        return "the best rank; no smaller one was trained with several seeds, so none is tested"
    return "the best rank, and no smaller one is shown to be as good"


def _open_questions(curve: RankCurve) -> list[str]:
    """Smaller ranks that may be adequate, by why that is not known."""
    smaller = [point for point in curve.points if point.r < curve.smallest_adequate_r and point.within_margin]
    said = []
    for why, of_these in (
        ("not shown to be", [point for point in smaller if point.decision != "not tested"]),
        ("not tested", [point for point in smaller if point.decision == "not tested"]),
    ):
        if of_these:
            names = " and ".join(str(point.r) for point in of_these)
            said.append(f"Within the margin by its mean, and {why}: rank {names}.")
    return said
