"""A function that blocks until its end, taken step by step."""

from __future__ import annotations

import threading

import pytest

from lora_lab.training.reference.stepwise import Stepwise


def counting(seen, limit=3):
    def run(hand_over):
        for value in range(limit):
            seen.append(value)
            if not hand_over(value):
                seen.append("asked to end")
                return
        seen.append("end")

    return run


def test_it_runs_only_when_asked_and_hands_over_every_value():
    seen = []
    steps = Stepwise(counting(seen))
    assert seen == []
    assert steps.next() == 0
    assert seen == [0]
    assert [steps.next(), steps.next(), steps.next(), steps.next()] == [1, 2, None, None]
    assert seen == [0, 1, 2, "end"]


def test_what_it_raises_is_raised_where_it_was_asked():
    def run(hand_over):
        hand_over("first")
        raise ValueError("no second")

    steps = Stepwise(run)
    assert steps.next() == "first"
    with pytest.raises(ValueError, match="no second"):
        steps.next()
    assert steps.next() is None


@pytest.mark.parametrize("steps_before", [0, 1, 2, 4])
def test_closing_brings_it_to_its_end(steps_before):
    seen, before = [], threading.active_count()
    steps = Stepwise(counting(seen))
    for _ in range(steps_before):
        steps.next()
    steps.close()
    assert threading.active_count() == before
    assert seen == {0: [], 1: [0, "asked to end"], 2: [0, 1, "asked to end"], 4: [0, 1, 2, "end"]}[steps_before]
    steps.close()


def test_a_function_that_goes_on_after_it_was_asked_to_end_is_waited_for():
    seen = []

    def run(hand_over):
        hand_over(0)
        seen.append(hand_over(1))
        seen.append(hand_over(2))

    steps = Stepwise(run)
    steps.next()
    steps.close()
    assert seen == [False, False]
