from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from analysis.simulated import study

from lora_lab.analysis.epochs import epoch_curves
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult

if TYPE_CHECKING:
    from collections.abc import Sequence

WOBBLE = (0.0, 0.002, -0.002)


def run(number: int, curve: Sequence[float], seed: int = 0, **params: Any) -> TrialResult:
    config = study().trial_config({"seed": seed, "num_train_epochs": len(curve), **params})
    if "eval_steps" not in params:
        training = config.training.model_copy(update={"eval_steps": None})
        config = config.model_copy(update={"training": training})
    return TrialResult(
        number=number,
        state="complete",
        params=params,
        config=config,
        engine=engine_for(config),
        metrics={"eval_loss": curve[-1]},
        curve=dict(enumerate(curve, start=1)),
    )


def replicated(curve: Sequence[float], first: int = 0, **params: Any) -> list[TrialResult]:
    shifted = [[value + (1 + 0.1 * epoch) * WOBBLE[seed] for epoch, value in enumerate(curve)] for seed in range(3)]
    return [run(first + seed, shifted[seed], seed, **params) for seed in range(3)]


def test_overfitting_begins_where_the_loss_is_shown_to_rise() -> None:
    [curve] = epoch_curves(replicated([4.5, 4.2, 4.2005, 4.3, 4.4]))

    assert (curve.unit, curve.runs, curve.apart, curve.numbers) == ("epoch", 3, False, (0, 1, 2))
    assert curve.minimum_at == 2
    assert curve.minimum_interval == (2, 3)
    assert (curve.overfits, curve.onset) == (True, 4)
    assert [point.at for point in curve.points] == [1, 2, 3, 4, 5]
    assert curve.points[3].rise == pytest.approx(0.1)
    low, high = curve.points[0].interval or (0, 0)
    assert low < 4.5 < high
    assert curve.points[1].p is None


def test_a_curve_that_falls_does_not_overfit() -> None:
    [curve] = epoch_curves(replicated([4.5, 4.3, 4.2]))

    assert (curve.minimum_at, curve.overfits, curve.onset) == (3, False, None)


def test_one_training_shows_a_minimum_and_proves_nothing() -> None:
    [curve] = epoch_curves([run(0, [4.5, 4.2, 4.3])])

    assert (curve.minimum_at, curve.minimum_interval, curve.overfits, curve.onset) == (2, None, None, None)
    assert curve.points[2].rise == pytest.approx(0.1)
    assert (curve.points[2].interval, curve.points[2].p) == (None, None)


def test_the_longest_training_holds_the_shorter_ones() -> None:
    trials = [run(0, [4.5, 4.2]), run(1, [4.5, 4.2, 4.1]), run(2, [4.5])]

    [curve] = epoch_curves(trials)

    assert (curve.number, len(curve.points)) == (1, 3)


def test_under_a_falling_rate_every_length_is_a_training_of_its_own() -> None:
    trials = [
        result
        for epochs, end in ((1, 4.4), (2, 4.2), (3, 4.35))
        for result in replicated([9.0] * (epochs - 1) + [end], first=10 * epochs, lr_scheduler_type="cosine")
    ]

    [curve] = epoch_curves(trials)

    assert curve.apart
    assert [round(point.value, 6) for point in curve.points] == [4.4, 4.2, 4.35]
    assert (curve.minimum_at, curve.overfits, curve.onset) == (2, True, 3)


def test_steps_are_counted_where_evaluations_are_not_epochs() -> None:
    [curve] = epoch_curves([run(0, [4.5, 4.2], eval_steps=16)])

    assert curve.unit == "step"
    assert [point.at for point in curve.points] == [16, 32]


def test_single_points_and_unfinished_trials_are_no_curves() -> None:
    pruned = replace(run(1, [4.0, 4.1]), state="pruned", metrics={})

    assert epoch_curves([run(0, [4.5]), pruned]) == []
