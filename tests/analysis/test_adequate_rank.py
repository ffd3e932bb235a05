from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from analysis.simulated import trial

from lora_lab.analysis.adequate_rank import rank_curves

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult


def cell(first: int, losses: list[float], **params: Any) -> list[TrialResult]:
    return [trial(first + seed, loss, seed=seed, **params) for seed, loss in enumerate(losses)]


def grid() -> list[TrialResult]:
    """Rank 4 is too small, 16 is enough at its own rate, and looks too small at the rate that suits 64."""
    shape = [0.000, 0.004, -0.004]
    means = {(4, 1e-3): 4.10, (4, 3e-3): 4.08, (16, 1e-3): 4.09, (16, 3e-3): 4.001, (64, 1e-3): 4.0, (64, 3e-3): 4.06}
    wobble = {4: [0.0005, 0, -0.0005], 16: [-0.0005, 0.0005, 0], 64: [0, -0.0005, 0.0005]}
    return [
        result
        for index, ((r, rate), mean) in enumerate(means.items())
        for result in cell(
            10 * index, [mean + s + w for s, w in zip(shape, wobble[r], strict=True)], r=r, learning_rate=rate
        )
    ]


def test_each_rank_stands_at_its_own_best_rate_and_is_tested() -> None:
    [curve] = rank_curves(grid(), base_loss=5.0, margin=0.01)

    assert (curve.targets, curve.layers, curve.best_r, curve.smallest_adequate_r) == ("all-linear", "all", 64, 16)
    assert curve.tested
    assert curve.margin == pytest.approx(0.01)
    assert [(point.r, point.learning_rate, point.adequate) for point in curve.points] == [
        (4, 3e-3, False),
        (16, 3e-3, True),
        (64, 1e-3, True),
    ]
    small, enough, best = curve.points
    assert small.p is not None
    assert small.p > 0.5
    assert enough.p is not None
    assert enough.p < 0.05
    assert best.p is None
    assert (enough.runs, enough.tried, enough.rates) == (3, 2, 2)
    assert enough.difference == pytest.approx(0.001)
    assert enough.interval is not None
    assert "all-linear: the smallest adequate rank is 16 of 4, 16, 64: shown to be within the margin" in curve.sentence


def test_without_replicates_the_means_decide_and_it_is_said() -> None:
    trials = [trial(0, 4.0, r=64), trial(1, 4.005, r=16), trial(2, 4.3, r=4)]

    [curve] = rank_curves(trials, base_loss=5.0, margin=0.01)

    assert (curve.smallest_adequate_r, curve.tested) == (16, False)
    assert "by its mean, which is not a test" in curve.sentence
    assert "Every rank had a single learning rate" in curve.sentence


def test_the_best_rank_can_be_the_smallest_adequate_one() -> None:
    [curve] = rank_curves([trial(0, 4.0, r=64), trial(1, 4.5, r=16)], base_loss=5.0, margin=0.01)

    assert curve.smallest_adequate_r == curve.best_r == 64
    assert "no smaller one is within the margin" in curve.sentence


def test_target_sets_have_curves_of_their_own() -> None:
    trials = [
        trial(index, 4.0 + 0.1 * index, r=r, target_modules=targets)
        for index, (r, targets) in enumerate(
            [(4, "mlp"), (8, "mlp"), (4, "attention"), (8, "attention"), (4, "all-linear")]
        )
    ]

    curves = rank_curves(trials, base_loss=5.0, margin=0.01)

    assert [(curve.targets, curve.best_r) for curve in curves] == [("attention", 4), ("mlp", 4)]


def test_where_ranks_are_tested_a_single_run_is_not_adequate() -> None:
    trials = [*cell(0, [4.0, 4.01, 3.99], r=64), *cell(10, [4.001, 4.01, 3.992], r=16), trial(20, 4.0, r=4)]

    [curve] = rank_curves(trials, base_loss=5.0, margin=0.01)

    assert (curve.smallest_adequate_r, curve.best_r, curve.tested) == (16, 64, True)
    assert [point.adequate for point in curve.points] == [False, True, True]
    assert "Within the margin by its mean, and not shown to be: rank 4." in curve.sentence
