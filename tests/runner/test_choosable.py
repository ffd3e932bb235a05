"""Which trials may yet be chosen, told one at a time, and all at once."""

from __future__ import annotations

import random

import pytest
from runner.scripted import spec

from lora_lab.runner.choosable import ALWAYS_KEPT, Choosable
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult
from lora_lab.study.sweep import Verdict

BASE_LOSS = 5.0
CONFIG = spec().trial_config({"r": 8})


def trial(number: int, loss: float, **more) -> TrialResult:
    fields = {"state": "complete", "params": {}, "config": CONFIG, "metrics": {"eval_loss": loss}}
    return TrialResult(number=number, engine=engine_for(CONFIG), **(fields | more))


def out_of_all(results: list[TrialResult], margin: float) -> set[int]:
    """By the definition: neither within the margin of the best, nor among the first three."""
    ranked = sorted((one.metrics["eval_loss"], one.number) for one in results)
    bound = ranked[0][0] + margin * max(0.0, BASE_LOSS - ranked[0][0])
    return {number for loss, number in ranked[ALWAYS_KEPT:] if loss > bound}


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.5])
def test_told_one_by_one_it_takes_out_what_is_out_of_all(margin):
    chance = random.Random(0)
    for _ in range(50):
        choosable, told, out = Choosable(BASE_LOSS, Verdict(margin=margin)), [], []
        for number in range(12):
            told.append(trial(number, round(chance.uniform(2.0, 5.5), 1)))
            choosable.add(told[-1])
            out += choosable.take_out()
            assert set(out) == out_of_all(told, margin)
        assert len(out) == len(set(out))


def test_trials_without_a_loss_and_retrainings_take_no_part():
    choosable = Choosable(BASE_LOSS, Verdict(margin=0.0))
    for number in range(4):
        choosable.add(trial(number, 3.0 + number))
    choosable.add(trial(4, 9.0, state="pruned"))
    choosable.add(trial(5, 9.0, replicate=1, confirms=0))
    choosable.add(trial(6, float("nan")))
    assert choosable.take_out() == [3]


def test_without_a_margin_all_stay():
    choosable = Choosable(BASE_LOSS, None)
    for number in range(9):
        choosable.add(trial(number, 3.0 + number))
    assert choosable.take_out() == []
