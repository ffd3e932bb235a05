"""How the loss answers to the scaling alpha / r and to scaling * learning rate, and how rules of thumb for alpha do."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.analysis.comparison import difference
from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.wording import targets_text, value_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.results import TrialResult

MIN_CONFIGURATIONS = 8
"""A parabola through fewer explains them whatever they are."""
NEAR = 1.2
"""A scaling within this factor of a rule's is taken for it."""
RULES: dict[str, Callable[[int], float]] = {
    "alpha = 2 r": lambda _: 2.0,
    "alpha = r": lambda _: 1.0,
    "alpha = r / 2": lambda _: 0.5,
    "alpha = 16": lambda r: 16 / r,
    "alpha = 32": lambda r: 32 / r,
    "alpha = 8 sqrt(r) (2 r at r = 16)": lambda r: 8 / math.sqrt(r),
    "alpha = 16 sqrt(r) (rsLoRA with alpha 16)": lambda r: 16 / math.sqrt(r),
}
"""The scaling alpha / r that each rule gives a rank; rsLoRA's alpha / sqrt(r) is a scaling too (arXiv:2312.03732)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalePoint:
    """One configuration."""

    number: int
    r: int
    alpha: float
    scaling: float
    learning_rate: float
    scaled_rate: float
    """scaling * learning rate."""
    targets: str
    value: float
    """Mean over its trainings, nats per token."""
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """Share of the variance of the loss that a parabola over the logarithm of one quantity explains."""

    quantity: str
    """`scaling`, `learning_rate`, `scaling * learning_rate` or `r`."""
    share: float
    """R squared, 0 to 1, adjusted for the two coefficients; below 0 is shown as 0.

    What other quantities do counts as unexplained, so a weak one beside a strong one comes out too small, down to 0.
    """
    optimum: float | None
    """Where the parabola has its minimum; None where it has none within the values tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleResponse:
    """The alpha/scale response of a study."""

    points: tuple[ScalePoint, ...]
    explained: tuple[Explained, ...]
    """Largest share first; empty below eight configurations."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleScore:
    """A rule of thumb for alpha, scored by what it loses against the best scaling tried at the same rank."""

    rule: str
    """Such as `alpha = 2 r`."""
    regret: float | None
    """Mean over `ranks`, nats; 0 is the best scaling tried at every rank. None: the rule was not tried."""
    worst: float | None
    """Largest regret at one rank."""
    ranks: tuple[int, ...]
    """Ranks at which a scaling within a factor 1.2 of the rule was tried, and another one too."""
    of: int
    """Ranks at which at least two scalings were tried."""
    noise: float | None
    """Standard error of `regret` by the noise floor, which makes no test: it is a distance to the best of several.

    None where no noise floor was measured.
    """


def scale_response(results: Sequence[TrialResult]) -> ScaleResponse:
    """Loss against scaling and scaling * learning rate, over the configurations with a value.

    Which quantity explains the loss says what to tune: under Adam the update grows with the learning rate, and with
    the scaling twice over, so neither alpha nor rank means much by itself.
    """
    points = [_scale_point(group) for group in replicate_groups(results)]
    found = [
        explained
        for name, of in QUANTITIES.items()
        if (explained := _explained(name, [of(point) for point in points], [point.value for point in points]))
    ]
    return ScaleResponse(
        points=tuple(sorted(points, key=lambda point: point.scaled_rate)),
        explained=tuple(sorted(found, key=lambda one: -one.share)),
    )


def _scale_point(group: ReplicateGroup) -> ScalePoint:
    lora, rate = group.config.lora, group.config.training.learning_rate
    return ScalePoint(
        number=group.number,
        r=lora.r,
        alpha=lora.alpha,
        scaling=lora.scaling,
        learning_rate=rate,
        scaled_rate=lora.scaling * rate,
        targets=targets_text(lora),
        value=group.mean,
        runs=len(group.values),
    )


QUANTITIES: dict[str, Callable[[ScalePoint], float]] = {
    "scaling": lambda point: point.scaling,
    "learning_rate": lambda point: point.learning_rate,
    "scaling * learning_rate": lambda point: point.scaled_rate,
    "r": lambda point: point.r,
}


def _explained(name: str, quantity: Sequence[float], values: Sequence[float]) -> Explained | None:
    """The fit of a parabola over the logarithm; None where too little varies for one."""
    x, y = np.log(np.array(quantity)), np.array(values)
    if len(y) < MIN_CONFIGURATIONS or len(np.unique(x.round(9))) < 3 or not np.var(y):
        return None
    centered = x - x.mean()
    design = np.stack([centered**2, centered, np.ones_like(x)], axis=1)
    coefficients, _, _, _ = np.linalg.lstsq(design, y, rcond=None)
    unexplained = np.sum((y - design @ coefficients) ** 2) / np.sum((y - y.mean()) ** 2)
    share = 1 - float(unexplained) * (len(y) - 1) / (len(y) - 3)
    vertex = -coefficients[1] / (2 * coefficients[0]) + x.mean() if coefficients[0] > 0 else np.inf
    inside = x.min() <= vertex <= x.max()
    return Explained(quantity=name, share=max(0.0, share), optimum=float(np.exp(vertex)) if inside else None)


def score_rules(results: Sequence[TrialResult]) -> list[RuleScore]:
    """Rules of thumb for alpha, best first, each rank at the best learning rate tried for that scaling.

    Empty where no rank was tried with two scalings. Compared are configurations of one rank, target set and choice of
    layers. A regret is a difference to the best of several, so that of a perfect rule is 0 and that of an equally good
    one is a little above.
    """
    groups = replicate_groups(results)
    noise = noise_floor(groups)
    places: dict[tuple[int, str, str], list[ReplicateGroup]] = {}
    for group in groups:
        lora = group.config.lora
        key = (lora.r, targets_text(lora), value_text(lora.layers))
        places.setdefault(key, []).append(group)
    contests = [(key[0], best) for key, members in places.items() if len(best := _best_by_scaling(members)) > 1]
    scores = [_score(rule, scaling_of, contests, noise) for rule, scaling_of in RULES.items() if contests]
    return sorted(scores, key=lambda score: math.inf if score.regret is None else score.regret)


def _best_by_scaling(groups: Sequence[ReplicateGroup]) -> dict[float, ReplicateGroup]:
    best: dict[float, ReplicateGroup] = {}
    for group in sorted(groups, key=lambda group: group.search_mean):
        best.setdefault(float(f"{group.config.lora.scaling:.6g}"), group)
    return best


def _score(
    rule: str,
    scaling_of: Callable[[int], float],
    contests: Sequence[tuple[int, Mapping[float, ReplicateGroup]]],
    noise: Noise | None,
) -> RuleScore:
    regrets, variances, ranks = [], [], []
    for r, by_scaling in contests:
        nearest = min(by_scaling, key=lambda scaling: abs(math.log(scaling / scaling_of(r))))
        if abs(math.log(nearest / scaling_of(r))) > math.log(NEAR):
            continue
        rival, best = by_scaling[nearest], min(by_scaling.values(), key=lambda group: group.mean)
        regrets.append(rival.mean - best.mean)
        variances.append(difference(rival, best, noise).se ** 2 if noise and rival is not best else 0.0)
        ranks.append(r)
    return RuleScore(
        rule=rule,
        regret=statistics.fmean(regrets) if regrets else None,
        worst=max(regrets, default=None),
        ranks=tuple(sorted(set(ranks))),
        of=len({r for r, _ in contests}),
        noise=math.sqrt(sum(variances)) / len(regrets) if noise and regrets else None,
    )
