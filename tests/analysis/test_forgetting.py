from __future__ import annotations

import pytest
from analysis.simulated import results, trial
from scipy.stats import spearmanr

from lora_lab.analysis.forgetting import forgetting_trade


def test_the_gentlest_of_those_that_gain_as_much_is_named() -> None:
    trials = [
        trial(0, 4.00, r=64, metrics={"forgetting": 0.9}),
        trial(1, 4.01, r=8, metrics={"forgetting": 0.2}),
        trial(2, 4.40, r=4, metrics={"forgetting": 0.1}),
        trial(3, 4.50, r=2, metrics={"forgetting": 0.5}),
    ]

    found = forgetting_trade(trials, base_loss=5.0, margin=0.02)

    assert found is not None
    assert [point.number for point in found.points] == [0, 1, 2, 3]
    assert [point.on_front for point in found.points] == [True, True, True, False]
    assert found.points[0].gain == pytest.approx(1.0)
    assert found.points[0].gain_interval is None
    assert found.gentlest == 1
    assert "trial 1 (r=8 all-linear) forgets 0.2000" in found.sentence


def test_replicates_give_intervals_of_both() -> None:
    trials = [
        trial(seed, 4.0 + 0.01 * seed, r=8, seed=seed, metrics={"forgetting": 0.2 + 0.02 * seed}) for seed in range(3)
    ]

    found = forgetting_trade(trials, base_loss=5.0, margin=0.02)

    assert found is not None
    [point] = found.points
    assert (point.gain, point.forgetting, point.runs) == (pytest.approx(0.99), pytest.approx(0.22), 3)
    for value, interval in ((point.gain, point.gain_interval), (point.forgetting, point.forgetting_interval)):
        assert interval is not None
        assert interval[0] < value < interval[1]
    assert found.rank_correlation is None
    assert "nothing within the margin of that gain forgets less" in found.sentence


def test_the_rank_correlation_is_that_of_scipy() -> None:
    single = [result for result in results() if result.replicate == 0]

    found = forgetting_trade(single, base_loss=5.07, margin=0.01)

    assert found is not None
    gains, losses = zip(*((point.gain, round(point.forgetting, 6)) for point in found.points), strict=True)
    assert found.rank_correlation == pytest.approx(spearmanr(gains, losses).statistic)


def test_nothing_gained_has_nothing_to_recommend() -> None:
    found = forgetting_trade([trial(0, 5.2, metrics={"forgetting": 0.2})], base_loss=5.0, margin=0.02)

    assert found is not None
    assert found.gentlest is None


def test_without_general_text_there_is_no_trade() -> None:
    assert forgetting_trade([trial(0, 4.0)], base_loss=5.0, margin=0.02) is None
