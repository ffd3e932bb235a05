"""Configurations against the best one: differences, their standard errors, and corrected one-sided tests."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.analysis.noise import Spread
from lora_lab.analysis.paired import Difference, ExampleLosses, example_difference, with_examples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.replicates import ReplicateGroup

LEVEL = 0.05
"""Of every test: the chance of one wrong claim among all of a family."""
ROUNDING = 1e-9
"""Nats by which losses that are equal as written may differ as binary fractions."""


def difference(
    one: ReplicateGroup, other: ReplicateGroup, noise: Noise, losses: Mapping[int, ExampleLosses] | None = None
) -> Difference:
    """Loss of `one` minus loss of `other`, by `contrast`; with `losses`, the evaluation set counts as a sample too.

    Args:
        one: a configuration.
        other: the one that is subtracted.
        noise: of the study.
        losses: by trial number, what it measured on every evaluation example; of use where it has every training of
            the common seeds.

    """
    apart = contrast([(1.0, one), (-1.0, other)], noise)
    if apart.evidence != "seeds":
        return apart
    common = sorted(one.values.keys() & other.values.keys())
    ones, others = (_losses(group, common, losses or {}) for group in (one, other))
    if ones is None or others is None or not _pairable(ones[0], others[0]):
        return apart
    return with_examples(apart, ones, others)


def contrast(parts: Sequence[tuple[float, ReplicateGroup]], noise: Noise) -> Difference:
    """A weighted sum of configurations' losses, with its standard error over seeds.

    Where the weights sum to 0 and all share seeds, it is that of the sums at every common seed (the same seed is the
    same data order); else that of the means. Its variance is what these trainings show, shrunk to the study's noise
    floor (`Noise.shrunk`): the floor lends three seeds the degrees of freedom of several configurations, and a
    configuration that spreads unlike the others is judged by its own spread.
    """
    squares = sum(weight**2 for weight, _ in parts)
    numbers = [group.number for _, group in parts]
    common = sorted(set.intersection(*(set(group.values) for _, group in parts)))
    if common and noise.paired_sd is not None and abs(sum(weight for weight, _ in parts)) < ROUNDING:
        sums = [sum(weight * group.values[seed] for weight, group in parts) for seed in common]
        own = Spread(statistics.variance(sums) if len(sums) > 1 else 0.0, len(sums) - 1)
        floor = Spread(squares * noise.paired_sd**2, noise.paired_degrees_of_freedom)
        spread = noise.shrunk(own, floor, numbers)
        return Difference(
            mean=statistics.fmean(sums),
            se=math.sqrt(spread.variance / len(sums)),
            degrees_of_freedom=spread.degrees_of_freedom,
            evidence="seeds",
            seeds=len(sums),
        )
    spreads = [
        (weight**2 / len(group.values), noise.shrunk(own_spread(group), noise.spread, [group.number]))
        for weight, group in parts
    ]
    return Difference(
        mean=sum(weight * group.mean for weight, group in parts),
        se=math.sqrt(sum(share * spread.variance for share, spread in spreads)),
        # The least of them, for all lean on the same floor.
        degrees_of_freedom=min(spread.degrees_of_freedom for _, spread in spreads),
        evidence="noise floor",
        seeds=len(common),
    )


def own_spread(group: ReplicateGroup) -> Spread:
    """What the trainings of one configuration show of its spread between seeds."""
    return Spread(statistics.variance(group.values.values()) if group.spread else 0.0, len(group.values) - 1)


def example_difference_of(
    one: ReplicateGroup, other: ReplicateGroup, losses: Mapping[int, ExampleLosses]
) -> Difference | None:
    """The difference of two single trainings over evaluation examples, which says nothing of other seeds.

    None where a configuration has several trainings, or their losses on the same examples are not known.
    """
    runs = [run for group in (one, other) for run in group.runs.values()]
    known = [losses[run.number] for run in runs if run.number in losses]
    if len(runs) != 2 or len(known) != 2:
        return None
    first, second = known
    return example_difference(first, second) if _pairable(first, second) else None


def _pairable(one: ExampleLosses, other: ExampleLosses) -> bool:
    """Whether examples say something of a difference: neither does other text (max_length is searched), nor one row."""
    return one.clusters > 1 and np.array_equal(one.label_tokens, other.label_tokens)


def _losses(
    group: ReplicateGroup, seeds: Sequence[int], losses: Mapping[int, ExampleLosses]
) -> list[ExampleLosses] | None:
    known = [losses.get(group.runs[seed].number) for seed in seeds]
    found = [one for one in known if one is not None]
    return found if len(found) == len(known) else None


def within(estimate: float, margin: float) -> bool:
    """Whether an estimated distance lies within the margin, which alone proves nothing."""
    return estimate <= margin + ROUNDING


def value_interval(group: ReplicateGroup, noise: Noise | None) -> tuple[float, float] | None:
    """95% interval of a configuration's value over seeds; None where no noise floor was measured."""
    return None if noise is None else group.measure.interval(contrast([(1.0, group)], noise).interval())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values in the order given (Holm 1979): a claim at level a holds where its value is <= a."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = highest
    return corrected


def held_out_value(groups: Sequence[ReplicateGroup]) -> float | None:
    """What the best of several configurations is worth on a seed that did not choose it, nats per token.

    The mean of the best one is the lowest of many, and so too low (the winner's curse). Here each seed in turn is left
    out, the best of the others' means is chosen, and its value at the seed left out counts (cross-validation of the
    choice). None below two seeds that all groups share.
    """
    shared = sorted(set.intersection(*(set(group.values) for group in groups))) if groups else []
    if len(shared) < 2:
        return None

    def chosen_without(seed: int) -> ReplicateGroup:
        others = [other for other in shared if other != seed]
        return min(groups, key=lambda group: statistics.fmean(group.values[other] for other in others))

    return statistics.fmean(chosen_without(seed).values[seed] for seed in shared)
