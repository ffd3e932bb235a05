"""The noise floor: how far seeds alone move a loss, pooled over configurations that spread alike."""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.analysis.replicates import ReplicateGroup

FEW_FREEDOM = 4
"""With fewer degrees of freedom of the other configurations an F test tells nothing."""
UNSTABLE_LEVEL = 0.01
"""Chance that of configurations that all spread alike one is called unstable."""
SCREEN = 0.9
"""A spread of its own above this point of the F distribution stands by itself, not shrunk to the floor."""
ZERO = 1e-9
"""A share of a matrix or of a sum of squares below this is rounding."""
PRIOR_FREEDOM = 6
"""Degrees of freedom with which the other configurations count beside what two show themselves, at most."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A variance, and how well it is known."""

    variance: float
    degrees_of_freedom: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """Spread between trainings of one configuration under different seeds, pooled over configurations."""

    sd: float
    """Nats; of single trainings with different seeds."""
    degrees_of_freedom: int
    configurations: int
    paired_sd: float | None = None
    """Nats; what is left of `sd` where two configurations share their seeds, so their data order; None: unknown."""
    paired_degrees_of_freedom: int = 0
    unstable: Mapping[int, float] = field(default_factory=dict)
    """Configurations that spread more than the others and are kept out, by number: their standard deviations."""

    @property
    def spread(self) -> Spread:
        """The variance of single trainings with different seeds."""
        return Spread(self.sd**2, self.degrees_of_freedom)

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of `sd` (chi-square)."""
        from scipy.special import chdtri  # type: ignore[import-untyped]  # half a second: only where needed

        squares = self.degrees_of_freedom * self.sd**2
        low, high = (math.sqrt(squares / chdtri(self.degrees_of_freedom, tail)) for tail in (0.025, 0.975))
        return low, high

    @property
    def smallest_real_difference(self) -> float:
        """Nats by which single runs of two seeds must differ so that chance alone does so in 5% of cases at most."""
        return self._of_two(self.sd, self.degrees_of_freedom)

    @property
    def smallest_paired_difference(self) -> float | None:
        """The smallest real difference of two single runs on one seed, as the trials of a search are."""
        if self.paired_sd is None:
            return None
        return self._of_two(self.paired_sd, self.paired_degrees_of_freedom)

    @staticmethod
    def _of_two(sd: float, freedom: int) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(freedom, 0.975)) * sd * math.sqrt(2)

    def shrunk(self, own: Spread, floor: Spread, numbers: Iterable[int]) -> Spread:
        """A spread that a few trainings show, drawn to that of the others in the study; neither alone is known well.

        Their mean, weighted by degrees of freedom, of which the others have six here, or all where they have fewer:
        then it is the pooled one. What is apart from the others, by an F test at 10% or because a configuration is
        unstable, stands by itself: pooled, it would make claims too easily, and others too hard to make. Shrinking is
        that of Smyth 2004, "Linear models and empirical Bayes methods", with a fixed weight, since a handful of
        configurations cannot tell it.

        Args:
            own: What the configurations in question show.
            floor: The same quantity by the study's noise floor, which includes it.
            numbers: Of these configurations.

        """
        from scipy.special import fdtri

        freedom = floor.degrees_of_freedom - own.degrees_of_freedom
        if own.degrees_of_freedom < 1:
            return floor
        if freedom < 1 or not self.unstable.keys().isdisjoint(numbers):
            return own
        squares = floor.variance * floor.degrees_of_freedom - own.variance * own.degrees_of_freedom
        others = max(0.0, squares) / freedom
        told_apart = freedom >= FEW_FREEDOM
        if told_apart and own.variance > others * float(fdtri(own.degrees_of_freedom, freedom, SCREEN)):
            return own
        weight = min(PRIOR_FREEDOM, freedom)
        total = own.degrees_of_freedom + weight
        return Spread((own.degrees_of_freedom * own.variance + weight * others) / total, total)


def noise_floor(groups: Sequence[ReplicateGroup]) -> Noise | None:
    """Pool the spread between seeds over the configurations that were trained at least twice; None: there are none.

    `sd` pools the variances within configurations. `paired_sd` is the residual of configuration + seed (a randomized
    block design: a seed is a data order, which all configurations share), which paired differences have. A
    configuration that spreads more than the others (near divergence one does so twenty times) is left out.
    """
    repeated = [group for group in groups if len(group.values) > 1 and group.trained]
    if not repeated:
        return None
    stable = _stable(repeated)
    freedom = sum(len(group.values) - 1 for group in stable)
    squares = sum(statistics.variance(group.values.values()) * (len(group.values) - 1) for group in stable)
    residual = _Residuals(stable)
    return Noise(
        sd=math.sqrt(squares / freedom),
        degrees_of_freedom=freedom,
        configurations=len(stable),
        paired_sd=residual.sd,
        paired_degrees_of_freedom=residual.degrees_of_freedom,
        unstable={group.number: statistics.stdev(group.values.values()) for group in repeated if group not in stable},
    )


def _stable(groups: Sequence[ReplicateGroup]) -> list[ReplicateGroup]:
    """The configurations without those that spread more than the rest by an F test, the worst taken out first.

    Bonferroni-corrected over the configurations. Half of them at least stay: more would be no exceptions.
    """
    stable = list(groups)
    while len(stable) > 2 and 2 * (len(stable) - 1) >= len(groups):
        residuals = _Residuals(stable)
        if not residuals.degrees_of_freedom:
            residuals = _Residuals(stable, with_seeds=False)
        p_values = residuals.p_values()
        worst = min(range(len(stable)), key=p_values.__getitem__)
        if p_values[worst] * len(stable) > UNSTABLE_LEVEL:
            break
        del stable[worst]
    return stable


@dataclass(frozen=True, slots=True)
class _Design:
    """The regression of values on configurations and seeds: all of it that does not depend on the values."""

    hat: np.ndarray
    """[cells, cells]: takes values to what the regression explains of them."""
    degrees_of_freedom: int
    """Of what is left; 0: seeds and configurations explain every value exactly, as with one configuration."""
    deletions: Sequence[tuple[np.ndarray, np.ndarray, int]]
    """For each configuration its cells, the form whose value the squares lose without them, and its rank."""


@functools.lru_cache(maxsize=256)
def _design(seeds_of: tuple[tuple[int, ...], ...], *, with_seeds: bool) -> _Design:
    """The design of configurations with these seeds; not every one needs every seed."""
    seeds = sorted({seed for row in seeds_of for seed in row})
    rows = np.repeat(np.arange(len(seeds_of)), [len(row) for row in seeds_of])
    columns = np.array([seeds.index(seed) for row in seeds_of for seed in row])
    design = np.eye(len(seeds_of))[rows]
    if with_seeds:
        design = np.hstack([design, np.eye(len(seeds))[columns]])
    hat = design @ np.linalg.pinv(design, rcond=ZERO)
    deletions = []
    for row in range(len(seeds_of)):
        cells = np.flatnonzero(rows == row)
        hidden = np.eye(len(cells)) - hat[np.ix_(cells, cells)]
        form = np.linalg.pinv(hidden, rcond=ZERO)
        deletions.append((cells, form, round(float(np.trace(hidden @ form)))))
    return _Design(hat, len(rows) - round(float(np.trace(hat))), deletions)


class _Residuals:
    """What value = configuration + seed leaves unexplained, or value = configuration."""

    def __init__(self, groups: Sequence[ReplicateGroup], *, with_seeds: bool = True) -> None:
        self._design = _design(tuple(tuple(group.values) for group in groups), with_seeds=with_seeds)
        self.degrees_of_freedom = self._design.degrees_of_freedom
        observed = np.array([one for group in groups for one in group.values.values()])
        self._left = observed - self._design.hat @ observed if self.degrees_of_freedom else np.zeros(len(observed))
        self.squares = float(self._left @ self._left)

    @property
    def sd(self) -> float | None:
        """The standard deviation of what is left; None where nothing is."""
        return math.sqrt(self.squares / self.degrees_of_freedom) if self.degrees_of_freedom else None

    def p_values(self) -> list[float]:
        """For each configuration, how likely it is by chance that it spreads so much more than the others."""
        return [self._p_value(*deletion) for deletion in self._design.deletions]

    def _p_value(self, cells: np.ndarray, form: np.ndarray, freedom: int) -> float:
        """That of an F test of the squares which go when the cells of a configuration are deleted."""
        from scipy.special import fdtrc

        squares = float(self._left[cells] @ form @ self._left[cells])
        rest = self.degrees_of_freedom - freedom
        if freedom < 1 or rest < 1:
            return 1.0
        of_others = (self.squares - squares) / rest
        if of_others <= ZERO * self.squares:
            return 0.0 if squares else 1.0
        return float(fdtrc(freedom, rest, squares / freedom / of_others))
