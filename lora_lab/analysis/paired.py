"""Differences of two configurations that saw the same data: over seeds, over evaluation examples, and over both."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Evidence = Literal["seeds", "examples", "seeds and examples", "noise floor"]


@dataclass(frozen=True, slots=True)
class ExampleLosses:
    """What one training measured on the evaluation set, example by example."""

    nll: np.ndarray
    """[n]: negative log-likelihood summed over an example's label tokens, in nats."""
    label_tokens: np.ndarray
    """[n]: label tokens of each example; equal for all trials on the same data."""
    groups: np.ndarray | None = None
    """[n]: what each example comes from (a document, a conversation), as a number; None: each stands for itself."""

    @property
    def clusters(self) -> int:
        """How many draws of text the examples are: their groups, or they themselves."""
        return len(self.nll) if self.groups is None else len(np.unique(self.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One configuration's loss minus another's, in nats per token: negative where the first is better."""

    mean: float
    se: float
    """Standard error of `mean`."""
    degrees_of_freedom: float
    evidence: Evidence
    seeds: int
    """Common seeds behind `mean`."""
    examples: int = 0
    """Evaluation examples behind `se`; 0: it holds for this evaluation set only."""
    examples_variance: float = 0.0
    """The part of se squared that only more examples make smaller."""
    interaction_variance: float = 0.0
    """The part of the rest that more examples make smaller too: what a seed does to single examples."""

    def interval(self) -> tuple[float, float]:
        """Two-sided 95% t interval of the difference."""
        from scipy.special import stdtrit  # type: ignore[import-untyped]  # half a second: only where needed

        half = float(stdtrit(self.degrees_of_freedom, 0.975)) * self.se
        return self.mean - half, self.mean + half

    def se_with(self, seeds: float, examples: float) -> float:
        """The standard error that `seeds` times the seeds and `examples` times the evaluation examples would give."""
        of_seeds = max(0.0, self.se**2 - self.examples_variance - self.interaction_variance)
        return math.sqrt((of_seeds + self.interaction_variance / examples) / seeds + self.examples_variance / examples)

    def p_not_below(self, bound: float) -> float:
        """One-sided p-value against "the true difference is `bound` or more"."""
        return _tail(self.mean - bound, self.se, self.degrees_of_freedom)

    def p_not_above(self, bound: float) -> float:
        """One-sided p-value against "the true difference is `bound` or less"."""
        return _tail(bound - self.mean, self.se, self.degrees_of_freedom)


def seed_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """Paired t over common seeds (the same seed is the same data order); None below two common seeds."""
    common = sorted(one.keys() & other.keys())
    if len(common) < 2:
        return None
    differences = np.array([one[seed] - other[seed] for seed in common])
    return Difference(
        mean=float(differences.mean()),
        se=float(differences.std(ddof=1)) / math.sqrt(len(common)),
        degrees_of_freedom=len(common) - 1,
        evidence="seeds",
        seeds=len(common),
    )


def example_difference(one: ExampleLosses, other: ExampleLosses) -> Difference:
    """Token-weighted difference of two trainings with its standard error over examples (clusters of tokens).

    Says whether these two adapters differ on text of this kind, not whether their configurations do: that takes seeds.
    Paired, clustered standard errors as in Miller 2024, arXiv:2411.00640, sections 2.2 and 4.2.

    Raises:
        InputError: they are not of the same evaluation set, or it has fewer than two examples.

    """
    mean, variance, _ = _over_examples([one], [other])
    return Difference(
        mean=mean,
        se=math.sqrt(variance),
        degrees_of_freedom=one.clusters - 1,
        evidence="examples",
        seeds=1,
        examples=len(one.nll),
        examples_variance=variance,
    )


def token_mean(losses: ExampleLosses) -> float:
    """Nats per label token over the whole set."""
    return float(losses.nll.sum() / losses.label_tokens.sum())


def with_examples(difference: Difference, ones: Sequence[ExampleLosses], others: Sequence[ExampleLosses]) -> Difference:
    """Widen a difference over seeds by what another sample of evaluation examples would change.

    Seeds and examples are crossed, so their variances add; the interaction (what a seed does to single examples),
    which is in both, is taken out of one (Owen 2007, "The pigeonhole bootstrap", section 3). Degrees of freedom by
    Satterthwaite 1946; where both variances matter, two seeds alone are too few for it (90% instead of 95%).

    The interaction is a part of the variance over seeds, and known from all examples, where three seeds know the whole
    badly: it bounds that variance from below. Of answers that are right or wrong it is most of it, a coin thrown anew
    by every training; without the bound too small a variance of few seeds makes claims too easily (7% instead of 5%).

    Args:
        difference: over the same seeds as the losses.
        ones: the losses of each of its seeds.
        others: those of the configuration that is subtracted, in the same order.

    Raises:
        InputError: they are not of the same evaluation set, or it has fewer than two examples.

    """
    _, variance, interaction = _over_examples(ones, others)
    count = ones[0].clusters
    seeds_variance, freedom = difference.se**2, difference.degrees_of_freedom
    if seeds_variance < interaction:
        seeds_variance, freedom = interaction, (count - 1) * max(1, len(ones) - 1)
    parts = seeds_variance**2 / freedom + variance**2 / (count - 1)
    total = seeds_variance + variance
    return Difference(
        mean=difference.mean,
        se=math.sqrt(total),
        degrees_of_freedom=total**2 / parts if parts else freedom,
        evidence="seeds and examples",
        seeds=difference.seeds,
        examples=len(ones[0].nll),
        examples_variance=variance,
        interaction_variance=min(interaction, seeds_variance),
    )


def _over_examples(ones: Sequence[ExampleLosses], others: Sequence[ExampleLosses]) -> tuple[float, float, float]:
    """Mean difference per token, its variance over examples alone, and that of the interaction of examples and seeds.

    Both are variances of the mean. A single seed cannot tell them apart: all counts as over examples. Examples of one
    group are not independent: their residuals are summed, and the groups are what is sampled (cluster-robust sums,
    Cameron and Miller 2015, "A practitioner's guide to cluster-robust inference").
    """
    tokens = ones[0].label_tokens
    same = all(np.array_equal(losses.label_tokens, tokens) for losses in (*ones, *others))
    clusters = ones[0].clusters
    if not same or clusters < 2:
        raise InputError(
            "a paired difference needs at least two evaluation examples, the same ones on both sides, or two groups of "
            f"them, but got {clusters} with {'equal' if same else 'different'} token counts; compare trials on one "
            "evaluation set"
        )
    weights = tokens / tokens.sum()
    sums = np.array([one.nll - other.nll for one, other in zip(ones, others, strict=True)])
    by_seed = sums.sum(axis=1) / tokens.sum()
    mean = float(by_seed.mean())
    by_example = sums / tokens.sum() - weights * mean
    residuals, weights = (_by_group(values, ones[0].groups) for values in (by_example, weights))
    over_examples = residuals.mean(axis=0)
    small_sample = clusters / (clusters - 1)
    variance = float(np.sum(over_examples**2)) * small_sample
    if len(ones) == 1:
        return mean, variance, 0.0
    crossed = residuals - over_examples - np.outer(by_seed - mean, weights)
    interaction = float(np.sum(crossed**2)) / (len(ones) * (len(ones) - 1)) * small_sample
    return mean, max(0.0, variance - interaction), interaction


def _by_group(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Sums of [..., n] values over the examples of each group: [..., groups]."""
    if groups is None:
        return values
    _, group_of = np.unique(groups, return_inverse=True)
    return values @ np.eye(group_of.max() + 1)[group_of]


def _tail(distance: float, se: float, degrees_of_freedom: float) -> float:
    """Probability of a t value at most `distance / se`; without any spread, 0 or 1."""
    from scipy.special import stdtr

    if se == 0:
        return 0.0 if distance < 0 else 1.0
    return float(stdtr(degrees_of_freedom, distance / se))
