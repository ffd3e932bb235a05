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


def sentence(*forgotten: float, gain: float = 1.0) -> str:
    """Of trials with less and less gain, that forget so much."""
    trials = [
        trial(number, 5.0 - gain + 0.01 * number, r=64 - number, metrics={"forgetting": value})
        for number, value in enumerate(forgotten)
    ]
    found = forgetting_trade(trials, base_loss=5.0, margin=0.05)
    assert found is not None
    return found.sentence


def test_general_text_that_improved_is_not_called_forgetting() -> None:
    said = sentence(-0.07)
    assert "no forgetting: its loss on general text is 0.0700 nats below the bare base" in said
    assert "-0.0700" not in said
    assert "nothing within the margin of that gain does better there" in said


def test_a_trial_that_forgets_nothing_is_told_so_beside_one_that_does() -> None:
    said = sentence(0.2, -0.05)
    assert "0.2000 nats of forgetting" in said
    assert "trial 1 (r=63 all-linear) forgets nothing (-0.0500)" in said


def test_no_change_at_all_is_no_forgetting() -> None:
    assert "is as on the bare base" in sentence(0.0)


def test_where_nothing_is_gained_no_gain_is_told() -> None:
    said = sentence(0.2, 0.1, gain=-0.5)
    assert said.startswith("Nothing gained on the domain; its best trial (0) has 0.2000 nats of forgetting")


def test_forgetting_within_its_noise_may_be_none() -> None:
    trials = [
        trial(seed, 4.0 + 0.01 * seed, r=8, seed=seed, metrics={"forgetting": value})
        for seed, value in enumerate((0.02, -0.1, 0.12))
    ]
    found = forgetting_trade(trials, base_loss=5.0, margin=0.02)
    assert found is not None
    assert "which may be none" in found.sentence
