"""Captured steps: what they compute, what is captured, and what happens where that fails."""

from __future__ import annotations

import logging
import weakref

import pytest
import torch
from strict_step import Strict
from workshop import drain, only

from lora_lab.common.errors import InputError
from lora_lab.study.events import Finished, Logged
from lora_lab.training.packed import blocks, captured_step
from lora_lab.training.packed.captured_step import SETTING, CapturedSteps, GraphPool, label_places

EXACT = 1e-9


@pytest.fixture(params=["merged", pytest.param("single", marks=pytest.mark.slow)])
def _blocks(request, monkeypatch):
    monkeypatch.setenv(blocks.SETTING, request.param)


def engine_with(bench, configs, capture=None):
    engine = bench.engine()
    if capture is not None:
        engine._steps = CapturedSteps(engine._model, capture)
    for number, config in enumerate(configs):
        engine.admit(number, config)
    return engine


def figures(events):
    return {(event.number, event.step): (event.loss, event.grad_norm) for event in only(events, Logged)}


def without_waiting(replays):
    """A capture that runs the function again, and sees to it that nothing in it waits for the device."""

    def capture(run):
        def replay():
            replays.append(1)
            with Strict():
                run()

        return replay

    return capture


def trials(bench, **settings):
    defaults = {"max_steps": 14, "logging_steps": 1}
    return [
        bench.trial(**(defaults | {"seed": seed, "gradient_accumulation_steps": steps} | settings))
        for seed, steps in enumerate((1, 2, 1))
    ]


@pytest.mark.usefixtures("_blocks")
def test_captured_steps_compute_what_others_do_and_wait_for_nothing(bench, monkeypatch):
    configs, replays = trials(bench), []
    plain = figures(drain(engine_with(bench, configs)))
    monkeypatch.setenv(SETTING, "on")
    captured = figures(drain(engine_with(bench, configs, without_waiting(replays))))
    assert len(replays) > 5
    assert captured.keys() == plain.keys()
    for key, values in plain.items():
        assert captured[key] == pytest.approx(values, abs=EXACT), key


def test_steps_that_launch_other_things_each_time_are_not_captured(bench, monkeypatch):
    monkeypatch.setenv(SETTING, "on")
    for settings in (
        {"lora": {"lora_dropout": 0.1}},
        {"lora": {"target_modules": "all-linear+head"}},
        {"data": {"packing": True}},
        {"gradient_checkpointing": True},
    ):
        replays = []
        drain(engine_with(bench, trials(bench, max_steps=6, **settings)[:1], without_waiting(replays)))
        assert not replays, settings


def test_a_capture_that_fails_is_told_once_and_the_step_made_as_ever(bench, monkeypatch, caplog):
    configs, tries = trials(bench, max_steps=9), []
    plain = figures(drain(engine_with(bench, configs)))
    monkeypatch.setenv(SETTING, "on")

    def capture(run):
        run()  # what was added to gradients is taken back
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING):
        tried = figures(drain(engine_with(bench, configs, capture)))
    assert len(tries) == len(caplog.records) == 1
    assert "launched one by one" in caplog.text
    for key, values in plain.items():
        assert tried[key] == pytest.approx(values, abs=EXACT), key


def test_memory_that_runs_out_takes_the_graphs_before_a_trial(bench, monkeypatch):
    monkeypatch.setenv(SETTING, "on")
    engine = engine_with(bench, trials(bench), without_waiting([]))
    events = []
    while not engine._steps._passes:
        events += engine.step()
    real = captured_step.Passes.fill
    monkeypatch.setattr(captured_step.Passes, "fill", _no_memory)
    while engine._steps._passes:
        events += engine.step()
    monkeypatch.setattr(captured_step.Passes, "fill", real)
    assert not engine.set_aside
    assert len(engine.active) == 3
    events += drain(engine)
    assert len(only(events, Finished)) == 3


def _no_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.usefixtures("_blocks")
def test_graphs_hold_for_one_pack_only(bench, monkeypatch):
    """One trial leaves, and another takes its place: with its rank and scaling, or with others."""
    first, second, _ = trials(bench, gradient_accumulation_steps=1)
    others = [
        bench.trial(seed=7, max_steps=12, logging_steps=1, lora=lora) for lora in ({}, {"lora_alpha": 3}, {"r": 8})
    ]

    def run():
        engine = engine_with(bench, [first, second], without_waiting([]))
        found = {}
        for number, other in enumerate(others, 2):
            events = [event for _ in range(9) for event in engine.step()]
            engine.discard(number - 1)
            engine.admit(number, other)
            found |= figures(events)
        return found | figures(drain(engine)), engine._steps.captured

    plain, none = run()
    monkeypatch.setenv(SETTING, "on")
    captured, some = run()
    assert none == 0
    assert some > 1
    assert captured.keys() == plain.keys()
    for key, values in plain.items():
        assert captured[key] == pytest.approx(values, abs=EXACT), key


def test_counts_of_labels_come_again():
    counts = [1, 16, 17, 64, 65, 100, 129, 300, 512, 513]
    assert [label_places(count) for count in counts] == [16, 16, 32, 64, 80, 112, 160, 320, 512, 640]
    assert all(count <= label_places(count) <= max(count + 15, 1.25 * count) for count in range(1, 3000))


def test_the_setting_says_on_or_off(bench, monkeypatch):
    monkeypatch.setenv(SETTING, "yes")
    with pytest.raises(InputError, match="LORA_LAB_GRAPHS: 'yes' is neither of on, off"):
        engine_with(bench, trials(bench)).step()


def test_a_pool_lives_as_long_as_its_graphs():
    class Graph:
        """As torch's, which weak references can point to."""

    handles = iter(range(9))
    pool = GraphPool(lambda: next(handles))
    assert pool.handle() == 0
    one, other = Graph(), Graph()
    pool.add(one)
    assert pool.handle() == 0
    pool.add(other)
    del one
    assert pool.handle() == 0
    del other
    assert pool.handle() == 1
    weakref.ref(torch.cuda.CUDAGraph)
    assert "__weakref__" in dir(torch.cuda.CUDAGraph)
