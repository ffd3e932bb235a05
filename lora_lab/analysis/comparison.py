"""Configurations against the best one: differences with the pooled noise floor, and corrected one-sided tests."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.analysis.paired import Difference, ExampleLosses, example_difference, with_examples

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.replicates import Noise, ReplicateGroup

LEVEL = 0.05
"""Of every test: the chance of one wrong claim among all of a family."""
ROUNDING = 1e-9
"""Nats by which losses that are equal as written may differ as binary fractions."""
NORMAL_95 = 1.6449
"""The 95% point of the normal distribution."""


def difference(
    one: ReplicateGroup, other: ReplicateGroup, noise: Noise, losses: Mapping[int, ExampleLosses] | None = None
) -> Difference:
    """Loss of `one` minus loss of `other`, with the standard error that the study's noise floor gives.

    Over their common seeds, where there are any, with the residual of configuration + seed; else of their means, with
    the spread between seeds. Pooling assumes that configurations worth comparing spread alike; it gives three seeds
    the degrees of freedom of the whole study. Where `losses` has every training involved, the evaluation set counts
    as a sample too.

    Args:
        one: a configuration.
        other: the one that is subtracted.
        noise: of the study.
        losses: by trial number, what it measured on every evaluation example.

    """
    common = sorted(one.values.keys() & other.values.keys())
    if not common or noise.paired_sd is None:
        spread = noise.sd * math.sqrt(1 / len(one.values) + 1 / len(other.values))
        return Difference(
            mean=one.mean - other.mean,
            se=spread,
            degrees_of_freedom=noise.degrees_of_freedom,
            evidence="noise floor",
            seeds=len(common),
        )
    paired = Difference(
        mean=statistics.fmean(one.values[seed] - other.values[seed] for seed in common),
        se=noise.paired_sd * math.sqrt(2 / len(common)),
        degrees_of_freedom=noise.paired_degrees_of_freedom,
        evidence="seeds",
        seeds=len(common),
    )
    ones, others = (_losses(group, common, losses or {}) for group in (one, other))
    if ones is None or others is None or not _pairable(ones[0], others[0]):
        return paired
    return with_examples(paired, ones, others)


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
    return len(one.nll) > 1 and np.array_equal(one.label_tokens, other.label_tokens)


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
    """95% interval of a configuration's value by the pooled noise floor; None where there is none."""
    interval = noise_interval(group.mean, 1 / len(group.values), noise)
    return None if interval is None else group.measure.interval(interval)


def noise_interval(value: float, variance_share: float, noise: Noise | None) -> tuple[float, float] | None:
    """95% interval of a value by the noise floor; `variance_share` is its variance over that of a single training."""
    if noise is None:
        return None
    se = noise.sd * math.sqrt(variance_share)
    freedom = noise.degrees_of_freedom
    return Difference(mean=value, se=se, degrees_of_freedom=freedom, evidence="noise floor", seeds=0).interval()


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values in the order given (Holm 1979): a claim at level a holds where its value is <= a."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for position, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - position) * p_values[index]))
        corrected[index] = highest
    return corrected


def seeds_to_decide(noise: Noise, margin: float, distance: float = 0.0) -> int | None:
    """Seeds of each configuration with which two are shown to be within the margin in 95% of cases.

    From the usual formula for a one-sided test at 5%, n = 2 ((z + z) sd / (margin - distance))^2; None where the
    distance leaves no room.

    Args:
        noise: The spread between seeds.
        margin: In nats.
        distance: How far the one truly is above the other, in nats.
    """
    room = margin - distance
    if room <= 0:
        return None
    sd = noise.sd if noise.paired_sd is None else noise.paired_sd
    return max(2, math.ceil(2 * (2 * NORMAL_95 * sd / room) ** 2))


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
