"""The arithmetic of how long a study will take, from timed samples."""

from __future__ import annotations

import numpy as np
import pytest

from lora_lab.planning.calibration import Seconds, calibration, total


def test_samples_have_a_mean_and_its_variance():
    one = Seconds.of([1.0, 2.0, 3.0])
    assert (one.mean, one.variance, one.samples) == (2.0, pytest.approx(1 / 3), 3)
    assert Seconds.of([4.0]) == Seconds(4.0, 0.0, 1)


def test_a_unit_is_the_ratio_of_the_sums():
    exact = Seconds.per_unit([2.0, 4.0, 1.0], [200.0, 400.0, 100.0])
    assert exact.mean == pytest.approx(0.01)
    assert exact.variance == pytest.approx(0.0)
    assert Seconds.per_unit([2.0, 5.0], [200.0, 400.0]).variance > 0


def test_many_and_sums():
    one = Seconds(2.0, 0.5, 8)
    assert one.times(3) == Seconds(6.0, 4.5, 8)
    assert total([one, one.times(3)]) == Seconds(8.0, 5.0, 16)


def test_the_interval_covers_as_often_as_it_says():
    """Of studies whose steps and batches vary, each timed by a dozen of them."""
    numbers, covered, rounds = np.random.default_rng(3), 0, 400
    for _ in range(rounds):
        steps = numbers.gamma(20.0, 1.0 / 20.0, size=(1012,))
        batches = numbers.gamma(10.0, 0.1 / 10.0, size=(212,))
        made = calibration(
            Seconds.of(list(steps[:12])).times(1000),
            Seconds.per_unit(list(batches[:12]), [1.0] * 12).times(200),
            Seconds(5.0),
            pack_size=1,
            tokens_per_second=1.0,
        )
        covered += made.low <= steps[12:].sum() + batches[12:].sum() + 5.0 <= made.high
    assert 0.91 <= covered / rounds <= 0.985


def test_parts_are_told_apart():
    made = calibration(
        Seconds(60.0, 4.0, 10), Seconds(20.0, 1.0, 5), Seconds(7.0), pack_size=4, tokens_per_second=812.0
    )
    assert (made.seconds, made.training_s, made.evaluation_s, made.other_s) == (87.0, 60.0, 20.0, 7.0)
    assert made.low < 87.0 < made.high
    assert made.high - 87.0 == pytest.approx(2.776 * 5**0.5, rel=1e-3)  # t with 4 degrees of freedom
    assert (made.steps, made.batches, made.pack_size) == (10, 5, 4)
