from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from lora_lab.analysis.paired import Difference, ExampleLosses, seed_difference, token_mean, with_examples
from lora_lab.analysis.sample_size import what_decides

SEEDS_ALONE = Difference(mean=0.0, se=0.01, degrees_of_freedom=1e9, evidence="seeds", seeds=4)


def test_without_examples_the_seeds_are_those_of_the_textbook() -> None:
    """n = n0 (z + z)^2 (se / room)^2 = 4 * 2.4865^2 for a room of one standard error, at 5% and 80%."""
    needed = what_decides(SEEDS_ALONE, 0.01, runs=4)

    assert (needed.seeds, needed.examples) == (math.ceil(4 * (1.6449 + 0.8416) ** 2), None)
    assert what_decides(SEEDS_ALONE, 0.02, runs=4).seeds == math.ceil(2.4865**2)
    assert what_decides(replace(SEEDS_ALONE, mean=0.01), 0.02, runs=4) == needed


def test_an_open_comparison_takes_more_seeds_than_it_has_and_no_margin_none() -> None:
    assert what_decides(SEEDS_ALONE, 1.0, runs=4).seeds == 5
    assert not what_decides(SEEDS_ALONE, 0.0, runs=4).found
    assert not what_decides(replace(SEEDS_ALONE, mean=0.02), 0.01, runs=4).found
    assert not what_decides(SEEDS_ALONE, 0.001, runs=4).found


def test_several_comparisons_and_few_degrees_of_freedom_take_more() -> None:
    alone = what_decides(SEEDS_ALONE, 0.01, runs=4).seeds
    assert alone is not None
    assert what_decides(SEEDS_ALONE, 0.01, runs=4, comparisons=4).seeds == math.ceil(4 * (2.2414 + 0.8416) ** 2)
    assert (what_decides(replace(SEEDS_ALONE, degrees_of_freedom=3), 0.01, runs=4).seeds or 0) > alone


def test_where_examples_alone_are_too_uncertain_no_number_of_seeds_decides() -> None:
    """Distance 0.0226 and margin 0.0262 leave a room of 0.0036; 100 examples alone have a standard error of 0.0019."""
    apart = Difference(
        mean=0.0226,
        se=0.0051,
        degrees_of_freedom=20,
        evidence="seeds and examples",
        seeds=3,
        examples=100,
        examples_variance=0.0019**2,
        interaction_variance=0.46 * 0.0051**2,
    )

    needed = what_decides(apart, 0.0262, runs=3)

    assert needed.seeds is None
    assert needed.examples is not None
    assert needed.examples % 100 == 0
    assert what_decides(replace(apart, examples_variance=0.0, interaction_variance=0.0), 0.0262, runs=3).seeds


def test_the_parts_of_a_variance_fall_with_seeds_and_examples_as_simulated_ones_do() -> None:
    """Four times the seeds, four times the examples, and both, against differences that are drawn so."""
    rng = np.random.default_rng(0)
    spreads = (0.02, 0.05, 0.08)

    def draw(seeds: int, examples: int) -> Difference:
        tokens = np.full(examples, 50)
        apart = rng.normal(0, spreads[0], (seeds, 1)) + rng.normal(0, spreads[1], examples)
        apart = apart + rng.normal(0, spreads[2], (seeds, examples))
        ones, others = ([ExampleLosses((3 + row) * tokens, tokens) for row in rows] for rows in (apart, 0 * apart))
        paired = seed_difference(*(dict(enumerate(map(token_mean, side))) for side in (ones, others)))
        assert paired is not None
        return with_examples(paired, ones, others)

    small = [draw(4, 50) for _ in range(300)]
    for seeds, examples in ((1, 1), (4, 1), (1, 4), (4, 4)):
        truth = np.mean([draw(4 * seeds, 50 * examples).se ** 2 for _ in range(100)])
        assert np.mean([one.se_with(seeds, examples) ** 2 for one in small]) == pytest.approx(truth, rel=0.15)
