"""Long work that is left between two of its parts: nothing of it is half counted, and what is made again is equal."""

from __future__ import annotations

import pytest
import torch
from workshop import CPU, drain, only, own_base

from lora_lab.common.activity import Activity, Interrupted
from lora_lab.study.events import Evaluated, Finished, Logged, Milestone
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.memory.probe import MemoryProbe
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

UNEQUAL = ("train_seconds", "eval_seconds", "tokens_per_second")


class Heard:
    """A `Beat` that keeps what it is told, and interrupts at one of its calls."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.activities: list[Activity] = []
        self.interrupt_at = interrupt_at

    def __call__(self, activity: Activity) -> None:
        self.activities.append(activity)
        if len(self.activities) - 1 == self.interrupt_at:
            raise Interrupted


@pytest.fixture(params=[PackedEngine, ReferenceEngine])
def make(request, bench, monkeypatch):
    """Makes engines that go on in one folder; what is predicted of a trial's memory takes longer than the trial."""
    monkeypatch.setattr(MemoryProbe, "predict", lambda *_: None)

    def engine(folder: str, beat: Heard) -> PackedEngine | ReferenceEngine:
        base = own_base(bench.model("float32"), CPU)
        catalog = DataCatalog(base.tokenizer, bench.scratch)
        made = request.param(base, catalog, bench.scratch / folder, beat)
        assert type(made) is request.param
        return made

    return engine


def config_of(bench):
    general = {"forgetting": str(bench.data_folder / "general.jsonl")}
    training = {"num_train_epochs": 2, "lr_scheduler_type": "constant", "per_device_eval_batch_size": 4}
    return bench.trial(dtype="float32", data=general, lora={"lora_dropout": 0.1}, **training)


def figures(events):
    """What was measured, but for times."""
    told = [event for event in events if isinstance(event, (Logged, Evaluated))]
    finals = [event.metrics for event in events if isinstance(event, (Finished, Milestone))]
    return told, [{name: value for name, value in one.items() if name not in UNEQUAL} for one in finals]


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}


def test_where_an_evaluation_is_is_told_before_each_of_its_batches(make, bench):
    heard = Heard()
    engine = make("trials", heard)
    engine.base_losses(config_of(bench))
    bare = "evaluation of the bare base"
    assert heard.activities == [Activity(bare, done, total) for total in (3, 2) for done in range(total)]
    engine.admit(7, config_of(bench))
    assert {one.what for one in heard.activities[5:]} == {"measuring the memory of trial 7"}
    heard.activities.clear()
    drain(engine)
    assert heard.activities[:3] == [Activity("evaluation of trial 7", done, 3) for done in range(3)]


@pytest.mark.parametrize("chosen", [(4,), pytest.param((0, 1, 2, 3, 5, 6, 7, 8, 9), marks=pytest.mark.slow)], ids=str)
def test_an_evaluation_that_is_interrupted_is_made_again_bit_for_bit(make, bench, chosen):
    """Also in the shorter run's batches, and in those on general text."""
    config = config_of(bench)
    shorter = [config.changed(training={"num_train_epochs": 1})]
    count = Heard()
    control = make("control", count)
    control.base_losses(config)
    control.admit(0, config, shorter)
    count.activities.clear()
    expected = figures(drain(control))
    batches = len(count.activities)
    assert batches == 2 * (3 + 2)  # two evaluations; general text at the milestone and at the end
    for at in chosen:
        folder, beat = f"at-{at}", Heard()
        engine = make(folder, beat)
        engine.base_losses(config)
        engine.admit(0, config, shorter)
        beat.activities.clear()
        beat.interrupt_at = at
        events = []
        while len(beat.activities) <= at:
            events += engine.step()
        step = engine.trial(0).progress.step
        assert only(events, Logged)[-1].step == step, "what came before the evaluation was told"
        assert all(event.step < step for event in only(events, Evaluated)), "no evaluation is half counted"
        engine.save_checkpoints()
        again = make(folder, Heard())
        again.base_losses(config)
        again.admit(0, config, shorter)
        assert again.trial(0).progress.step == step
        events += drain(again)
        assert figures(events) == expected
        assert files(bench.scratch / folder).keys() - files(bench.scratch / "control").keys() <= {
            path for path in files(bench.scratch / folder) if "checkpoint" in path.parts
        }
        control_files = files(bench.scratch / "control")
        assert {path: content for path, content in files(bench.scratch / folder).items() if path in control_files} == (
            control_files
        )


def test_an_evaluation_that_is_interrupted_goes_on_in_the_next_step(make, bench):
    """Where the process does not end after all."""
    config = config_of(bench)
    control = make("control", Heard())
    control.admit(0, config)
    expected = figures(drain(control))
    beat = Heard()
    engine = make("trials", beat)
    engine.admit(0, config)
    beat.interrupt_at = len(beat.activities) + 1
    assert figures(drain(engine)) == expected


@pytest.mark.parametrize("at", [0, 40])
def test_a_memory_probe_that_is_interrupted_leaves_no_trace(make, bench, at):
    config = config_of(bench)
    control = make("control", Heard())
    control.admit(0, config)
    engine = make("trials", Heard(at))
    with pytest.raises(Interrupted):
        engine.admit(0, config)
    assert engine.active == ()
    assert engine.admit(0, config) is None
    state, expected = engine.trial(0).state(), control.trial(0).state()
    assert state.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state.items())
    assert engine.memory(0) == control.memory(0) or engine.memory(0).peak_bytes == control.memory(0).peak_bytes
