"""Memory may run out at any allocation: the sweep goes on, and every trial gives the figures that it gives anyway."""

from __future__ import annotations

import weakref
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from workshop import drain, only

from lora_lab.study.events import Evaluated, Finished, Logged, OutOfMemory
from lora_lab.training import assessment
from lora_lab.training.memory.probe import MemoryProbe
from lora_lab.training.packed.blocks import SETTING
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.packed.optimizer import SlotOptimizer
from lora_lab.training.packed.slot import Slot
from lora_lab.training.packed_engine import PackedEngine

FIGURES = {Logged: "loss", Evaluated: "eval_loss", Finished: "epoch"}


class Sweep:
    """What a runner does with three trials: admit, step, save now and then, take up again what left the pack."""

    def __init__(self, bench) -> None:
        common = {"max_steps": 3, "eval_steps": 2, "per_device_train_batch_size": 4}
        lora = {"r": 2, "target_modules": "attention"}
        self.configs = {
            0: bench.trial(**common, lora=lora),
            1: bench.trial(**common, seed=1, lora={**lora, "lora_dropout": 0.2}, gradient_accumulation_steps=2),
            2: bench.trial(**common, seed=2, lora=lora, optim="sgd", weight_decay=0.1),
        }
        self.engine = bench.engine()
        self.figures: dict[tuple[str, int, int], float] = {}
        self.too_large: set[int] = set()

    def run(self) -> Sweep:
        engine, waiting = self.engine, list(self.configs)
        for turn in range(100):
            for number in waiting:
                self._book([engine.admit(number, self.configs[number])], alone=not engine.active)
            waiting = []
            if turn % 2:
                engine.save_checkpoints()
            if turn == 2 and 1 in engine.active:  # comes back at its checkpoint
                engine.discard(1)
                waiting = [1]
            if engine.active:
                training = len(engine.active)
                events = engine.step()  # those that finish in it leave before the next is evaluated
                self._book(events, alone=training - len(only(events, Finished)) == 1)
            elif not engine.set_aside and not waiting:
                return self
            if engine.set_aside and (turn % 3 == 2 or not engine.active):
                waiting, engine.set_aside[:] = [*waiting, *engine.set_aside], []
        raise AssertionError("the sweep does not come to its end")

    def _book(self, events, *, alone: bool) -> None:
        for event in events:
            if isinstance(event, OutOfMemory):
                assert alone, "a pack is made smaller before a trial is given up"
                self.too_large.add(event.number)
            elif event is not None:
                key = (type(event).__name__, event.number, event.step)
                figure = getattr(event, FIGURES[type(event)])
                assert self.figures.setdefault(key, figure) == pytest.approx(figure, abs=1e-9)


def check(sweep: Sweep, expected: Sweep) -> None:
    """Every trial came to its end with the figures that it has undisturbed, but for those that were too large alone."""
    wanted = {key: value for key, value in expected.figures.items() if key[1] not in sweep.too_large}
    got = {key: value for key, value in sweep.figures.items() if key[1] not in sweep.too_large}
    assert got == pytest.approx(wanted, abs=1e-9)


@pytest.fixture
def sweeps(bench, monkeypatch):
    """Makes sweeps; what is predicted of trials is not what they meet, and takes its time."""
    monkeypatch.setenv(SETTING, "merged")  # of the three trials, two stand in a block
    for owner in (MemoryProbe, PackedEngine):
        monkeypatch.setattr(owner, "predict", lambda *_: None)
    return lambda: Sweep(bench)


class RunsOut:
    """Stands in the place of a method or function, and lets memory run out at some of its calls."""

    def __init__(self, function, calls) -> None:
        self.function, self.calls, self.count = function, calls, -1

    def __call__(self, *args, **kwargs):
        self.count += 1
        if self.count in self.calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.function(*args, **kwargs)

    def __get__(self, owner, _=None):
        return self if owner is None else partial(self, owner)


PLACES = {
    "slot": (Slot, "__init__"),
    "probe": (MemoryProbe, "measure"),
    "optimizer step": (SlotOptimizer, "step"),
    "clipping": (Slot, "clip"),
    "forward": (PackedModel, "nll"),
    "backward": (torch.autograd, "backward"),
    "evaluation": (assessment, "evaluate"),
    "adapter": (PackedEngine, "save_adapter"),
    "checkpoint": (Slot, "state"),
    "restore": (Slot, "restore"),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_call_that_runs_out(sweeps, monkeypatch, place):
    """Once at the first call, and at five later ones in a row."""
    owner, name = PLACES[place]
    function = getattr(owner, name)

    def run(failing):
        trap = RunsOut(function, failing)
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, trap)
            return sweeps().run(), trap.count

    expected, last = run(())
    assert last > 0, "the place is never come to"
    for failing in ({0}, set(range(1, 6))):
        sweep, count = run(failing)
        assert count >= min(failing)
        check(sweep, expected)
        assert failing != {0} or not sweep.too_large


class Allocations(TorchDispatchMode):
    """Counts what operations allocate, and lets memory run out from one allocation on, for as many as are said."""

    def __init__(self, failing: range = range(0)) -> None:
        super().__init__()
        self.failing, self.count = failing, 0

    def __torch_dispatch__(self, operation, _, arguments=(), keywords=None):
        result = operation(*arguments, **(keywords or {}))
        given = {storage(value) for value in tree_iter((arguments, keywords)) if isinstance(value, torch.Tensor)}
        if any(isinstance(value, torch.Tensor) and storage(value) not in given for value in tree_iter(result)):
            self.count += 1
            if self.count - 1 in self.failing:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return result


def storage(tensor):
    return tensor.untyped_storage()._cdata


@pytest.mark.slow
@pytest.mark.parametrize("in_a_row", [1, 40])
def test_an_allocation_that_fails(sweeps, in_a_row):
    """At some of all allocations of the sweep, wherever these are."""
    with Allocations() as all_of_them:
        expected = sweeps().run()
    assert all_of_them.count > 2000
    for first in range(7, all_of_them.count, all_of_them.count // 8):
        sweep = sweeps()
        with Allocations(range(first, first + in_a_row)) as allocations:
            sweep.run()
        assert allocations.count > first
        check(sweep, expected)


def test_nothing_of_the_failed_step_is_held_while_room_is_made(bench, monkeypatch):
    """An error holds the frames it came through, and so all activations, for as long as it is handled."""
    engine = bench.engine()
    for number in range(2):
        engine.admit(number, bench.trial(seed=number))
    held, alive = [], []

    def nll(*_):
        activations = torch.zeros(1000)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(engine._model, "nll", nll)
    monkeypatch.setattr(Slot, "state", lambda _: alive.append(held[0]() is not None) or {})
    assert engine.step() == []
    assert alive == [False]
    assert engine.set_aside == [1]


def test_a_trial_that_does_not_fit_alone_ends_at_its_admission(bench, monkeypatch):
    def slot(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    engine = bench.engine()
    assert engine.predict(bench.trial()) is not None
    with monkeypatch.context() as patched:
        patched.setattr(Slot, "__init__", slot)
        ending = engine.admit(4, bench.trial())
    assert (ending.number, ending.step) == (4, 0)
    assert "does not fit even alone" in ending.reason
    assert "Tried to allocate 2.00 GiB" in ending.reason
    assert engine.active == ()
    assert engine.admit(4, bench.trial()) is None
    assert [event.number for event in only(drain(engine), Finished)] == [4]
