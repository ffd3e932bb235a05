from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from analysis.simulated import trial

from lora_lab.analysis.comparison import (
    difference,
    example_difference_of,
    held_out_value,
    holm,
    value_interval,
)
from lora_lab.analysis.noise import Noise
from lora_lab.analysis.paired import ExampleLosses
from lora_lab.analysis.replicates import replicate_groups

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult

NOISE = Noise(sd=0.03, degrees_of_freedom=6, configurations=3, paired_sd=0.01, paired_degrees_of_freedom=4)


def replicated(r: int, values: dict[int, float]) -> list[TrialResult]:
    return [trial(100 * r + seed, value, r=r, seed=seed) for seed, value in values.items()]


def test_common_seeds_are_paired_with_the_pooled_residual() -> None:
    small, large = replicate_groups(replicated(4, {0: 4.1, 1: 4.12, 5: 9.0}) + replicated(8, {0: 4.0, 1: 4.01}))

    found = difference(small, large, NOISE)

    assert found.mean == pytest.approx(0.105)
    # The floor has 3 degrees of freedom beside their own one: together they are the floor again.
    assert found.se == pytest.approx(0.01)
    assert (found.degrees_of_freedom, found.seeds, found.evidence) == (4, 2, "seeds")


def test_without_common_seeds_the_noise_floor_says_how_far_means_may_be_apart() -> None:
    small, large = replicate_groups(replicated(4, {0: 4.1, 1: 4.12}) + replicated(8, {2: 4.0, 3: 4.02, 4: 4.01}))

    found = difference(small, large, NOISE)

    assert found.mean == pytest.approx(0.1)
    assert found.se == pytest.approx(0.03 * math.sqrt(1 / 2 + 1 / 3))
    assert (found.degrees_of_freedom, found.evidence) == (6, "noise floor")


def test_what_is_compared_with_an_unstable_configuration_rests_on_their_own_seeds() -> None:
    small, large = replicate_groups(replicated(4, {0: 4.1, 1: 4.12}) + replicated(8, {0: 4.0, 1: 4.01}))
    restless = replace(NOISE, unstable={small.number: 0.5})

    found = difference(small, large, restless)

    assert (found.se, found.degrees_of_freedom) == (pytest.approx(math.sqrt(0.00005 / 2)), 1)
    assert value_interval(large, restless) == value_interval(large, NOISE)


def test_per_example_losses_widen_a_difference_where_all_are_known_and_of_the_same_text() -> None:
    small, large = replicate_groups(replicated(4, {0: 4.1, 1: 4.3}) + replicated(8, {0: 4.0, 1: 4.1}))
    rng = np.random.default_rng(0)
    tokens = np.full(30, 10)
    harder = rng.normal(0, 0.3, 30)
    hard = {400: harder, 401: harder, 800: np.zeros(30), 801: np.zeros(30)}
    known = {number: ExampleLosses(10 * (4 + effect), tokens) for number, effect in hard.items()}
    other_text = known | {800: ExampleLosses(np.ones(31), np.ones(31))}

    assert difference(small, large, NOISE, known).evidence == "seeds and examples"
    assert difference(small, large, NOISE, known).se > difference(small, large, NOISE).se
    assert difference(small, large, NOISE, {400: known[400]}) == difference(small, large, NOISE)
    assert difference(small, large, NOISE, other_text) == difference(small, large, NOISE)


def test_single_runs_are_compared_over_examples() -> None:
    small, large = replicate_groups([trial(0, 4.0, r=4), trial(1, 4.0, r=8)])
    tokens = np.array([5, 5, 5])
    known = {0: ExampleLosses(np.array([5.0, 6.0, 7.0]), tokens), 1: ExampleLosses(np.array([4.0, 6.0, 5.0]), tokens)}

    found = example_difference_of(small, large, known)

    assert found is not None
    assert found.mean == pytest.approx(0.2)
    assert example_difference_of(small, large, {0: known[0]}) is None
    [repeated] = replicate_groups(replicated(4, {0: 4.1, 1: 4.3}))
    assert example_difference_of(repeated, large, known) is None


def test_an_interval_of_a_value_shrinks_with_its_trainings() -> None:
    [once], [four] = (replicate_groups(replicated(4, dict.fromkeys(range(n), 4.0))) for n in (1, 4))

    narrow, wide = value_interval(four, NOISE), value_interval(once, NOISE)

    assert narrow is not None
    assert wide is not None
    assert (wide[1] - wide[0]) / (narrow[1] - narrow[0]) == pytest.approx(2)
    assert wide[1] - 4.0 == pytest.approx(2.4469 * 0.03, rel=1e-4)
    assert value_interval(once, None) is None


def test_holm_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_choice_is_judged_by_the_seed_that_did_not_make_it() -> None:
    groups = replicate_groups(replicated(4, {0: 3.0, 1: 4.2}) + replicated(8, {0: 4.0, 1: 4.0}))

    # Without seed 0 the second is chosen (4.0 at seed 0); without seed 1 the first (4.2 at seed 1).
    assert held_out_value(groups) == pytest.approx(4.1)
    assert held_out_value(replicate_groups([trial(0, 4.0)])) is None
    assert held_out_value([]) is None
