"""The smallest adequate rank of every target set, each rank at the best learning rate that was tried for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lora_lab.analysis.comparison import LEVEL, difference, holm, value_interval
from lora_lab.analysis.replicates import noise_floor, replicate_groups
from lora_lab.analysis.wording import nats, p_text, value_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.paired import ExampleLosses
    from lora_lab.analysis.replicates import Noise, ReplicateGroup
    from lora_lab.study.results import TrialResult


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPoint:
    """One rank at its best configuration."""

    r: int
    number: int
    """Of the trial."""
    learning_rate: float
    value: float
    """Mean over its trainings, nats per token."""
    runs: int
    """Trainings behind `value`."""
    interval: tuple[float, float] | None
    """95% interval of `value`; None where no noise floor was measured."""
    tried: int
    """Configurations of this rank with a value; the best of many looks better than it is."""
    rates: int
    """Distinct learning rates among them."""
    difference: float
    """To the best rank of the target set, nats; 0 for that one."""
    p: float | None
    """One-sided, Holm-corrected, against "worse than the best rank by the margin or more"; None: not tested."""
    adequate: bool
    """Within the margin of the best rank: by that test at 5%; by the means where no rank is tested, or r is larger."""
    trainable_params: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankCurve:
    """Loss against rank on one target set."""

    targets: str
    layers: str
    points: tuple[RankPoint, ...]
    """By rank."""
    margin: float
    """Nats."""
    best_r: int
    smallest_adequate_r: int
    tested: bool
    """Whether `smallest_adequate_r` rests on a test; else on the means alone."""
    sentence: str


def rank_curves(
    results: Sequence[TrialResult],
    base_loss: float,
    margin: float,
    metric: str = "eval_loss",
    losses: Mapping[int, ExampleLosses] | None = None,
) -> list[RankCurve]:
    """One curve for every target set and choice of layers that was tried at two ranks or more.

    Every rank stands at its best other settings (the learning rate above all), picked by the search. A rank below
    the best one is adequate when a configuration of it is shown not to be worse than the best by the margin or more:
    the verdict's own test, Holm-corrected over all configurations of smaller rank that have replicates.

    Args:
        results: every trial of the study, retrainings included.
        base_loss: of the bare base, nats per token.
        margin: share of the target set's own gain over the base.
        metric: `eval_loss` or `forgetting`.
        losses: as in `decide`.

    """
    groups = replicate_groups(results, metric)
    noise = noise_floor(groups)
    sets: dict[tuple[str, str], list[ReplicateGroup]] = {}
    for group in groups:
        lora = group.config.lora
        sets.setdefault((value_text(lora.target_modules), value_text(lora.layers)), []).append(group)
    return [
        _curve(key, members, noise, base_loss=base_loss, share=margin, losses=losses)
        for key, members in sorted(sets.items())
        if len({member.config.lora.r for member in members}) > 1
    ]


def _curve(
    key: tuple[str, str],
    groups: Sequence[ReplicateGroup],
    noise: Noise | None,
    *,
    base_loss: float,
    share: float,
    losses: Mapping[int, ExampleLosses] | None,
) -> RankCurve:
    by_rank: dict[int, list[ReplicateGroup]] = {}
    for group in groups:
        by_rank.setdefault(group.config.lora.r, []).append(group)
    chosen = {r: min(by_rank[r], key=lambda group: group.search_mean) for r in sorted(by_rank)}
    replicated = [group for group in chosen.values() if len(group.values) > 1]
    best = min(replicated or chosen.values(), key=lambda group: (group.mean, group.config.lora.r))
    best_r = best.config.lora.r
    margin = max(0.0, share * (base_loss - best.mean))
    tests = _tests([g for g in groups if g.config.lora.r < best_r], best, noise, margin, losses)
    points = [_point(by_rank[r], group, best, noise, margin=margin, tests=tests) for r, group in chosen.items()]
    adequate = next(point.r for point in points if point.adequate or point.r == best_r)
    curve = RankCurve(
        targets=key[0],
        layers=key[1],
        points=tuple(points),
        margin=margin,
        best_r=best_r,
        smallest_adequate_r=adequate,
        tested=bool(tests),
        sentence="",
    )
    return replace(curve, sentence=_sentence(curve))


def _tests(
    smaller: Sequence[ReplicateGroup],
    best: ReplicateGroup,
    noise: Noise | None,
    margin: float,
    losses: Mapping[int, ExampleLosses] | None,
) -> dict[int, float]:
    """By rank, the lowest corrected p-value of its configurations."""
    if noise is None or len(best.values) < 2:
        return {}
    family = [group for group in smaller if len(group.values) > 1]
    corrected = holm([difference(group, best, noise, losses).p_not_below(margin) for group in family])
    lowest: dict[int, float] = {}
    for group, p in zip(family, corrected, strict=True):
        lowest[group.config.lora.r] = min(p, lowest.get(group.config.lora.r, 1.0))
    return lowest


def _point(
    tried: Sequence[ReplicateGroup],
    group: ReplicateGroup,
    best: ReplicateGroup,
    noise: Noise | None,
    *,
    margin: float,
    tests: Mapping[int, float],
) -> RankPoint:
    r, apart = group.config.lora.r, group.mean - best.mean
    p = tests.get(r)
    by_mean = apart <= margin and (not tests or r >= best.config.lora.r)
    return RankPoint(
        r=r,
        number=group.number,
        learning_rate=group.config.training.learning_rate,
        value=group.mean,
        runs=len(group.values),
        interval=value_interval(group, noise),
        tried=len(tried),
        rates=len({one.config.training.learning_rate for one in tried}),
        difference=apart,
        p=p,
        adequate=by_mean if p is None else p <= LEVEL,
        trainable_params=group.metric_mean("trainable_params"),
    )


def _sentence(curve: RankCurve) -> str:
    where = curve.targets if curve.layers == "all" else f"{curve.targets}, layers {curve.layers}"
    tried = ", ".join(str(point.r) for point in curve.points)
    point = next(point for point in curve.points if point.r == curve.smallest_adequate_r)
    if point.r == curve.best_r:
        found = "the best rank, and no smaller one is " + (
            "shown to be as good" if curve.tested else "within the margin"
        )
    elif point.p is not None:
        found = f"shown to be within the margin of the best rank ({curve.best_r}), corrected p {p_text(point.p)}"
    else:
        found = f"within the margin of the best rank ({curve.best_r}) by its mean, which is not a test"
    single_rate = max(one.rates for one in curve.points) < 2
    caveat = " Every rank had a single learning rate, which may suit some better than others." if single_rate else ""
    smaller = [one for one in curve.points if one.r < point.r and one.difference <= curve.margin]
    names = " and ".join(str(one.r) for one in smaller)
    open_question = f" Within the margin by its mean, and not shown to be: rank {names}." if smaller else ""
    return (
        f"{where}: the smallest adequate rank is {point.r} of {tried}: {found} "
        f"({nats(point.difference)} nats above it; margin {nats(curve.margin)}).{open_question}{caveat}"
    )
