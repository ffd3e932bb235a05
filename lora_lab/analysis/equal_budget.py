"""Target sets and layers compared fairly: at equal rank, and at an equal number of trained parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from lora_lab.analysis.comparison import LEVEL, contrast, holm
from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.wording import count_text, nats, targets_text, value_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.paired import Difference
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.results import TrialResult

    _Curve = Sequence[tuple[float, "_Estimate"]]

WIDE = 1.5
"""Below this factor between its ends, a common range of budgets is one point."""
ROUNDING = 1e-9

Arm = Literal["target_modules", "layers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmValue:
    """One arm at one rank or at one budget."""

    arm: str
    value: float
    """Nats per token; interpolated over the logarithm of the parameters between the two nearest ranks."""
    interval: tuple[float, float] | None
    """95%; None where no noise floor was measured."""
    numbers: tuple[int, ...]
    """The trials behind `value`: one, or two where it is interpolated."""
    tried: int
    """Configurations that these were picked from."""
    difference: float
    """To the best arm, nats; 0 for that one."""
    known: bool | None
    """Whether the difference is shown to be real (5%, two-sided, corrected); None: not tested, or the best arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """All arms at one point, best first."""

    r: int | None
    """For a comparison at equal rank."""
    trainable_params: float | None
    """For a comparison at equal budget."""
    arms: tuple[ArmValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmComparison:
    """A study's target sets, or its choices of layers, against each other."""

    by: Arm
    at_equal_rank: tuple[Comparison, ...]
    at_equal_budget: tuple[Comparison, ...]
    sentence: str
    """What the comparison says, or why there is none."""


@dataclass(frozen=True, slots=True)
class _Estimate:
    """A loss at a budget: of one configuration, or a weighted mean of the two configurations around the budget."""

    parts: tuple[tuple[float, ReplicateGroup], ...]
    tried: int

    @property
    def value(self) -> float:
        return sum(weight * group.mean for weight, group in self.parts)

    @property
    def repeated(self) -> bool:
        return all(len(group.values) > 1 for _, group in self.parts)


def compare_arms(results: Sequence[TrialResult], by: Arm) -> ArmComparison | None:
    """Compare arms, each at its best other settings; None where fewer than two arms have a value.

    At an equal budget, an arm's loss is interpolated over the logarithm of the parameters between its two nearest
    ranks, never beyond them; budgets are the two ends and the middle of the range that all arms cover. Standard errors
    are those of `contrast`: over seeds alone, so a difference holds for this evaluation set, unlike one of `decide`,
    which may also cover other examples.
    """
    groups = replicate_groups(results)
    noise = noise_floor(groups)
    arms: dict[str, list[ReplicateGroup]] = {}
    for group in groups:
        lora = group.config.lora
        arms.setdefault(targets_text(lora) if by == "target_modules" else value_text(lora.layers), []).append(group)
    if len(arms) < 2:
        return None
    ranks = sorted({group.config.lora.r for group in groups})
    by_rank = [_comparison({arm: _at_rank(g, r) for arm, g in arms.items()}, noise, r=r) for r in ranks]
    curves = {arm: _by_params(members) for arm, members in arms.items()}
    budgets = _budgets(curves)
    by_budget = [
        _comparison({arm: _at_budget(curve, budget) for arm, curve in curves.items()}, noise, budget=budget)
        for budget in budgets
    ]
    comparison = ArmComparison(
        by=by,
        at_equal_rank=tuple(one for one in by_rank if len(one.arms) > 1),
        at_equal_budget=tuple(one for one in by_budget if len(one.arms) > 1),
        sentence="",
    )
    return replace(comparison, sentence=_sentence(comparison))


def _at_rank(groups: Sequence[ReplicateGroup], r: int) -> _Estimate | None:
    same = [group for group in groups if group.config.lora.r == r]
    return _Estimate(((1.0, min(same, key=lambda g: g.search_mean)),), len(same)) if same else None


def _by_params(groups: Sequence[ReplicateGroup]) -> _Curve:
    """The best configuration at every number of trained parameters, in their order."""
    at: dict[float, list[ReplicateGroup]] = {}
    for group in groups:
        params = group.metric_mean("trainable_params")
        if params is not None:
            at.setdefault(params, []).append(group)
    return [
        (params, _Estimate(((1.0, min(same, key=lambda g: g.search_mean)),), len(same)))
        for params, same in sorted(at.items())
    ]


def _budgets(curves: Mapping[str, _Curve]) -> list[float]:
    if not all(curves.values()):
        return []
    low = max(curve[0][0] for curve in curves.values())
    high = min(curve[-1][0] for curve in curves.values())
    if low > high:
        return []
    return [low, math.sqrt(low * high), high] if high > WIDE * low else [math.sqrt(low * high)]


def _at_budget(curve: _Curve, budget: float) -> _Estimate | None:
    for (low, left), (high, right) in pairwise(curve):
        if low <= budget * (1 + ROUNDING) and budget <= high * (1 + ROUNDING):
            share = min(1.0, max(0.0, math.log(budget / low) / math.log(high / low)))
            parts = ((1 - share, left.parts[0][1]), (share, right.parts[0][1]))
            return _Estimate(tuple(part for part in parts if part[0] > ROUNDING), left.tried + right.tried)
    return curve[0][1] if math.isclose(curve[0][0], budget) else None


def _comparison(
    estimates: Mapping[str, _Estimate | None], noise: Noise | None, *, r: int | None = None, budget: float | None = None
) -> Comparison:
    known = {arm: estimate for arm, estimate in estimates.items() if estimate is not None}
    order = sorted(known, key=lambda arm: known[arm].value)
    best = known[order[0]] if order else None
    apart = [_difference(known[arm], best, noise) for arm in order[1:]] if best else []
    corrected = iter(holm([min(1.0, 2 * one.p_not_above(0.0)) for one in apart if one is not None]))
    shown = [None, *(None if one is None else next(corrected) <= LEVEL for one in apart)]
    arms = [
        ArmValue(
            arm=arm,
            value=known[arm].value,
            interval=contrast(known[arm].parts, noise).interval() if noise else None,
            numbers=tuple(group.number for _, group in known[arm].parts),
            tried=known[arm].tried,
            difference=known[arm].value - known[order[0]].value,
            known=real,
        )
        for arm, real in zip(order, shown, strict=False)
    ]
    return Comparison(r=r, trainable_params=budget, arms=tuple(arms))


def _difference(one: _Estimate, best: _Estimate, noise: Noise | None) -> Difference | None:
    """The tested difference of two estimates; None where a configuration has no replicates, so no noise is known."""
    if noise is None or not (one.repeated and best.repeated):
        return None
    return contrast([*one.parts, *((-weight, group) for weight, group in best.parts)], noise)


def _sentence(comparison: ArmComparison) -> str:
    name = "target set" if comparison.by == "target_modules" else "choice of layers"
    if not comparison.at_equal_budget:
        return (
            f"No {name} can be compared at an equal number of trained parameters: the ranges that were tried do not "
            "overlap. Try higher ranks where fewer modules are adapted."
        )
    middle = comparison.at_equal_budget[len(comparison.at_equal_budget) // 2]
    assert middle.trainable_params is not None
    best, *others = middle.arms

    def names(known: bool | None) -> str:
        return ", ".join(
            f"{other.arm} ({nats(other.difference)} nats above)" for other in others if other.known is known
        )

    claim = f", better than {names(True)} beyond the noise between seeds" if names(True) else ""
    doubt = f"; not shown to be better than {names(False)}" if names(False) else ""
    untested = f"; not tested against {names(None)}, which takes replicates of both" if names(None) else ""
    return (
        f"At an equal budget of {count_text(middle.trainable_params)} trained parameters the best {name} is "
        f"{best.arm}{claim}{doubt}{untested}."
    )
