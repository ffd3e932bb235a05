"""Memory that really runs out, at each place of a step: does the engine go on with the same figures?

Without a GPU an error is raised at the place instead. The cells of `memory` on the 1B shape stand between.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from gpu_items.bench import Bench, lazily
from gpu_items.cells import Cell, Context
from gpu_items.device import attention_by, free_all, on_gpu, out_of_memory, patched
from gpu_items.memory import cases, measured
from lora_lab.training import assessment
from lora_lab.training.packed.optimizer import SlotOptimizer
from lora_lab.training.packed.slot import Slot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.training.packed_engine import PackedEngine

MIB = 2**20
ENDINGS = ("Finished", "Diverged", "Failed", "OutOfMemory")


class Sweep:
    """What a coordinator does with three trials: admit, step, take up what was set aside; and what came of it."""

    def __init__(self, bench: Bench, before_step: Callable[[int, PackedEngine], None]) -> None:
        toy = bench.engine._base.device.type != "cuda"
        shape, lora = (16 if toy else 256, 2), {"r": 4 if toy else 8}
        training = {"max_steps": 4, "eval_steps": 2, "learning_rate": 1e-3}
        self._engine, self._before_step = bench.engine, before_step
        trials = [bench.trial(*shape, lora, {"seed": seed, **training}) for seed in range(3)]
        self._configs = dict(enumerate(trials, bench.number))
        bench.number += len(trials)
        self._losses: dict[int, dict] = {number: {} for number in self._configs}
        self._evaluations: dict[int, dict] = {number: {} for number in self._configs}
        self.ends: dict[int, str] = {}
        self.set_aside = 0

    def run(self) -> None:
        engine, waiting = self._engine, list(self._configs)
        for turn in range(60):
            self._before_step(turn, engine)
            while waiting:
                ending = engine.admit(waiting[0], self._configs[waiting[0]])
                waiting.pop(0)
                self._book([] if ending is None else [ending])
            if engine.active:
                self._book(engine.step())
                self.set_aside = max(self.set_aside, len(engine.set_aside))
            elif not engine.set_aside:
                break
            if engine.set_aside and (turn % 3 == 2 or not engine.active):
                waiting, engine.set_aside[:] = list(engine.set_aside), []

    def _book(self, events: list[Any]) -> None:
        for event in events:
            kind, number = type(event).__name__, event.number
            if kind == "Logged":
                self._losses[number][event.step] = event.loss
            elif kind == "Evaluated":
                self._evaluations[number][event.evaluation] = event.eval_loss
            elif kind in ENDINGS:
                self.ends[number] = kind
                self._engine.discard(number)

    @property
    def figures(self) -> list[list[float]]:
        """The losses and the evaluations of one trial after the other."""
        return [list(one[number].values()) for number in self._configs for one in (self._losses, self._evaluations)]


class Trap:
    """Takes all memory when a place is entered, once; gives it back when the place is left, or at the next step."""

    def __init__(self) -> None:
        self.sprung = False
        self._held: list[Any] = []

    def around(
        self, real: Callable, when: Callable[[Any], bool] = lambda _: True, *, keep: bool = False
    ) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            if self.sprung or not when(arguments):
                return real(*arguments, **keywords)
            self.sprung = True
            try:
                self._spring()
                return real(*arguments, **keywords)
            finally:
                if not keep:
                    self.release()

        return wrapped

    def _spring(self) -> None:
        if not on_gpu():
            raise torch.OutOfMemoryError("CUDA out of memory (put on).")
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        for size in (free - 64 * MIB, 256 * MIB, 32 * MIB, 4 * MIB):  # what is free in torch's cache too
            with contextlib.suppress(torch.OutOfMemoryError):
                while size > 0:
                    self._held.append(torch.empty(size, dtype=torch.uint8, device="cuda"))

    def release(self, *_: Any) -> None:
        self._held.clear()


def _second_call() -> Callable[[Any], bool]:
    calls = Counter()

    def when(_: Any) -> bool:
        calls["all"] += 1
        return calls["all"] == 2

    return when


def _several(engine: PackedEngine) -> bool:
    return len(engine.active) > 1


PLACES: dict[str, Callable[[PackedEngine, Trap], tuple[Any, str, Callable[..., Any]]]] = {
    "slot of the 1st trial": lambda engine, trap: (engine, "_new_slot", trap.around(engine._new_slot)),
    "slot of the 2nd trial": lambda engine, trap: (
        engine,
        "_new_slot",
        trap.around(engine._new_slot, _second_call()),
    ),
    "memory probe": lambda engine, trap: (engine._probe, "measure", trap.around(engine._probe.measure)),
    "first optimizer step": lambda _, trap: (
        Slot,
        "update",
        trap.around(Slot.update, lambda given: given[0].progress.step == 0),
    ),
    "first optimizer step of the 2nd trial": lambda engine, trap: (
        Slot,
        "update",
        trap.around(Slot.update, lambda given: given[0].progress.step == 0 and given[0].number != engine.active[0]),
    ),
    "optimizer step, inside": lambda engine, trap: (
        SlotOptimizer,
        "step",
        trap.around(SlotOptimizer.step, lambda _: _several(engine)),
    ),
    "clipping": lambda engine, trap: (Slot, "clip", trap.around(Slot.clip, lambda _: _several(engine))),
    "forward pass": lambda engine, trap: (
        engine._model,
        "nll",
        trap.around(engine._model.nll, lambda _: _several(engine)),
    ),
    "backward pass": lambda engine, trap: (
        torch.autograd,
        "backward",
        trap.around(torch.autograd.backward, lambda _: _several(engine)),
    ),
    "evaluation": lambda _, trap: (assessment, "evaluate", trap.around(assessment.evaluate)),
    "forward pass, and still when room is made": lambda engine, trap: (
        engine._model,
        "nll",
        trap.around(
            engine._model.nll,
            lambda _: _several(engine) and next(iter(engine._slots.values())).progress.step == 1,
            keep=True,
        ),
    ),
    "periodic checkpoint": lambda _, trap: (
        Slot,
        "state",
        trap.around(Slot.state, lambda given: given[0].progress.step),
    ),
    "restore": lambda _, trap: (Slot, "restore", trap.around(Slot.restore, lambda given: given[2].step > 0)),
    "adapter that is written": lambda engine, trap: (
        engine._assessor,
        "_save_adapter",
        trap.around(engine._assessor._save_adapter, lambda _: _several(engine)),
    ),
}
"""What is replaced while a sweep runs: the object, its attribute, and what stands there instead."""


def _come_back(turn: int, engine: PackedEngine) -> None:
    """Let the newest trial leave with a checkpoint, which it goes on from in the next turn."""
    if turn != 2:
        return
    engine.save_checkpoints()
    newest = engine.active[-1]
    engine.discard(newest)
    engine.set_aside.append(newest)


class RunningOut:
    """Sweeps of the same trials, undisturbed and disturbed."""

    def __init__(self, get: Callable[[], Bench], sources: Path) -> None:
        self._get, self._sources = get, sources
        self._control: list[list[float]] | None = None
        self._need = 0
        """Bytes that the undisturbed sweep takes beside the base."""

    def _sweep(self, before_step: Callable[[int, PackedEngine], None] = lambda *_: None) -> tuple[dict, list]:
        bench = self._get()
        engine = bench.engine
        bench.empty()
        engine._memory._by_shape.clear()  # the probe measures again
        engine._make_room = bench.make_room
        sweep, outcome = Sweep(bench, before_step), "handled"
        try:
            sweep.run()
        except Exception as error:
            if not out_of_memory(error) and not isinstance(error, (KeyError, RuntimeError)):
                raise
            outcome = self._told(error)
        engine._make_room = bench.no_room
        bench.empty()
        ends = dict(Counter(sweep.ends.values()))
        return {"outcome": outcome, "set_aside": sweep.set_aside, "ends": ends}, sweep.figures

    def _told(self, error: Exception) -> str:
        frames = [
            f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename.startswith(str(self._sources))
        ]
        words = " ".join(str(error).split())[:90]
        return f"ESCAPES: {type(error).__name__}: {words} | {' > '.join(frames[-3:])}"

    def _compared(self, found: dict, figures: list[list[float]]) -> dict:
        if self._control is None:
            self._control = self._sweep()[1]
        pairs = list(zip(figures, self._control, strict=True))
        differences = [abs(x - y) for one, other in pairs for x, y in zip(one, other, strict=False)]
        complete = all(len(one) == len(other) for one, other in pairs)
        return found | {"all figures there": complete, "largest difference": max(differences, default=None)}

    def undisturbed(self) -> dict:
        self._get().empty()
        self._control = self._sweep()[1]
        before = torch.cuda.memory_allocated() if on_gpu() else 0
        if on_gpu():
            torch.cuda.reset_peak_memory_stats()
        again = self._compared(*self._sweep())
        if not on_gpu():
            return again
        self._need = torch.cuda.max_memory_allocated() - before
        return again | {"need_gb": self._need / 1e9}

    def gone_at(self, place: str) -> dict:
        engine, trap = self._get().engine, Trap()

        def before_step(turn: int, engine: PackedEngine) -> None:
            trap.release()
            if place in ("periodic checkpoint", "restore"):
                _come_back(turn, engine)

        with patched(*PLACES[place](engine, trap)):
            try:
                found = self._sweep(before_step)
            finally:
                trap.release()
        return self._compared(*found) | {"reached": trap.sprung}

    def ballast(self, share: float) -> dict:
        """Ballast that leaves a share of what the undisturbed pack takes beside the base, all the time."""
        if not on_gpu():
            return {"skipped": "no CUDA"}
        if not self._need:
            self.undisturbed()
        self._get().empty()
        free, _ = torch.cuda.mem_get_info()
        weight = torch.empty(max(1, int(free - share * self._need)), dtype=torch.uint8, device="cuda")
        try:
            return self._compared(*self._sweep()) | {"left_gb": share * self._need / 1e9}
        finally:
            del weight
            free_all()


def memory_item(context: Context) -> list[Cell]:
    get, load = lazily(lambda: Bench(context, "toy" if context.toy else "1B"))
    running_out = RunningOut(get, context.project / "lora_lab")
    cells = [load, Cell("undisturbed", running_out.undisturbed, 4, 60)]
    cells += [Cell(f"gone at: {place}", partial(running_out.gone_at, place), 3, 40) for place in PLACES]
    for name, case in cases("1B", toy=context.toy).items():
        measure = partial(attention_by, lambda case=case: measured(get(), case), cudnn=False)
        cells.append(Cell(f"memory {name}", measure, 4, 40))
    shares = (1.2, 0.8, 0.5, 0.25)
    return cells + [
        Cell(f"ballast leaves {share:.2f} of the need", partial(running_out.ballast, share), 4, 40) for share in shares
    ]
