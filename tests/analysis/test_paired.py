from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lora_lab.analysis.paired import ExampleLosses, example_difference, seed_difference, token_mean, with_examples
from lora_lab.common.errors import InputError

ONE = {0: 4.00, 1: 4.10, 2: 4.05, 7: 9.0}
OTHER = {0: 4.02, 1: 4.13, 2: 4.04}


def losses(nll: list[float], tokens: list[int]) -> ExampleLosses:
    return ExampleLosses(np.array(nll), np.array(tokens))


def test_over_seeds_it_is_the_paired_t_test_of_scipy() -> None:
    found = seed_difference(ONE, OTHER)
    expected = stats.ttest_rel([ONE[s] for s in range(3)], [OTHER[s] for s in range(3)])
    interval = expected.confidence_interval(0.95)

    assert found is not None
    assert found.mean == pytest.approx(-0.04 / 3)
    assert found.interval() == pytest.approx((interval.low, interval.high))
    assert found.p_not_below(0.0) == pytest.approx(expected.pvalue / 2)
    assert found.p_not_above(0.0) == pytest.approx(1 - expected.pvalue / 2)
    assert (found.seeds, found.examples, found.evidence) == (3, 0, "seeds")


def test_one_common_seed_is_no_interval() -> None:
    assert seed_difference({0: 1.0, 1: 2.0}, {1: 2.0, 2: 3.0}) is None


def test_without_any_spread_a_claim_is_certain_or_absent() -> None:
    found = seed_difference({0: 1.0, 1: 2.0}, {0: 0.5, 1: 1.5})

    assert found is not None
    assert (found.p_not_below(0.6), found.p_not_below(0.5), found.p_not_below(0.4)) == (0.0, 1.0, 1.0)


def test_over_examples_of_equal_length_it_is_the_paired_t_test_of_the_examples() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(3, 0.5, 40), rng.normal(3, 0.5, 40)
    tokens = np.full(40, 10)

    found = example_difference(ExampleLosses(first * 10, tokens), ExampleLosses(second * 10, tokens))
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)

    assert found.interval() == pytest.approx((interval.low, interval.high))
    assert (found.examples, found.evidence) == (40, "examples")


def test_long_examples_weigh_more() -> None:
    one, other = losses([30.0, 2.0], [10, 1]), losses([20.0, 4.0], [10, 1])

    found = example_difference(one, other)

    assert found.mean == pytest.approx((32 - 24) / 11)
    assert found.mean == pytest.approx(token_mean(one) - token_mean(other))


def test_examples_widen_an_interval_over_seeds_unless_all_of_them_agree() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 20, 50)
    base = [rng.normal(3, 0.5, 50) for _ in range(3)]
    over_seeds = seed_difference({0: 0.11, 1: 0.10, 2: 0.09}, dict.fromkeys(range(3), 0.0))
    assert over_seeds is not None

    def widened(per_example: np.ndarray) -> float:
        others = [ExampleLosses(tokens * one, tokens) for one in base]
        ones = [
            ExampleLosses(tokens * (one + shift + per_example), tokens)
            for one, shift in zip(base, (0.11, 0.10, 0.09), strict=True)
        ]
        return with_examples(over_seeds, ones, others).se

    assert widened(np.zeros(50)) == pytest.approx(over_seeds.se)
    assert widened(rng.normal(0, 0.2, 50)) > 2 * over_seeds.se


def test_the_interaction_of_seeds_and_examples_counts_once() -> None:
    rng = np.random.default_rng(2)
    tokens = np.full(2000, 10)
    noise = rng.normal(0, 1.0, (4, 2000))
    ones = [ExampleLosses(10 * row, tokens) for row in noise]
    others = [ExampleLosses(np.zeros(2000), tokens) for _ in noise]
    over_seeds = seed_difference(dict(enumerate(noise.mean(axis=1))), dict.fromkeys(range(4), 0.0))
    assert over_seeds is not None

    both = with_examples(over_seeds, ones, others)

    assert both.se == pytest.approx(over_seeds.se, rel=0.05)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (losses([1.0, 2.0], [1, 2]), losses([1.0, 2.0], [2, 1])),
        (losses([1.0, 2.0], [1, 2]), losses([1.0], [1])),
        (losses([1.0], [1]), losses([2.0], [1])),
    ],
)
def test_other_examples_have_no_pairs(one: ExampleLosses, other: ExampleLosses) -> None:
    with pytest.raises(InputError, match="at least two evaluation examples, the same ones on both sides"):
        example_difference(one, other)


def test_what_seeds_do_to_single_examples_bounds_what_they_do_to_the_mean() -> None:
    """Two seeds whose means happen to agree: their examples show that other seeds would not."""
    rng, tokens = np.random.default_rng(5), np.ones(50, dtype=int)
    flips = rng.choice([-1.0, 1.0], size=50)
    ones = [ExampleLosses(1.0 + side * flips, tokens) for side in (1, -1)]
    others = [ExampleLosses(np.zeros(50), tokens)] * 2
    agreed = seed_difference({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0})
    assert agreed is not None
    assert agreed.se == 0

    apart = with_examples(agreed, ones, others)

    centered = flips - flips.mean()
    interaction = float(np.sum(centered**2)) * 2 / (50 * 50 * 2) * 50 / 49
    assert apart.se**2 - apart.examples_variance == pytest.approx(interaction)
    assert apart.degrees_of_freedom == pytest.approx(49)
    wide = seed_difference({0: 3.0, 1: -1.0}, {0: 0.0, 1: 0.0})
    assert wide is not None
    assert with_examples(wide, ones, others).se == pytest.approx(wide.se)
