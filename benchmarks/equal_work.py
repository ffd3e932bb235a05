"""The same trials packed, and one after another with `Trainer` + `peft`: python benchmarks/equal_work.py

Grid: tokens per trial and step x trials in a pack. Both sides train the same mix of ranks, in one process, on one
loaded base, and take turns, so that a change of the machine's speed meets both. Timed twice: the whole list of trials
(making adapters, trainer and optimizer included, which is what a user waits for) and the training steps alone. Neither
side evaluates or saves.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from summarize import speedups
from workload import MODEL, RANKS, SHAPES, RandomTokens, make_trials, train_alone, train_packed, write_result

from lora_lab.training.base.loading import load_base
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference.model import sharing_copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.training.base.loading import Base

STEPS = {64: 50, 128: 32, 256: 16, 512: 10, 1024: 5, 2048: 3, 4096: 2}
"""Of each of eight trials: what short trials of a study have, and fewer where a step alone takes long."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PACKS = (1, 4, 8, 16)
MOST_TOKENS = 32768
"""In one pass; beyond that nothing is gained any more, and main memory becomes the limit."""


class Cell:
    """One number of tokens per trial and step: the eight trials, and both ways to train them."""

    def __init__(self, tokens: int, pristine: Any, base: Base, folder: Path, clock: Callable[[], float]) -> None:
        self.rows, self.length = SHAPES[tokens]
        self._tokens = RandomTokens(max(64, self.rows * 4), self.length)
        self._engine = PackedEngine(base, self._tokens, folder / str(tokens))
        self._pristine, self._base, self._folder, self._clock = pristine, base, folder, clock
        self._numbers = 0

    def packed(self, pack: int, steps: int) -> dict[str, float]:
        """ms per trial and step in packs of `pack`: of the whole list, at least eight trials, and of steps alone."""
        trials = make_trials(max(8, pack), self.rows, steps + 1, length=self.length)
        started = self._clock()
        training = train_packed(self._engine, trials, pack, self._numbers, self._clock)
        whole = self._clock() - started
        self._numbers += len(trials)
        return {name: 1000 * value / len(trials) / steps for name, value in (("whole", whole), ("steps", training))}

    def sequential(self, steps: int) -> dict[str, float]:
        """ms per trial and step of `Trainer`, one trial after another: of the whole list, and of steps alone."""
        trials = make_trials(8, self.rows, steps + 1, length=self.length)
        folder = self._folder / "trainer"
        found = {"whole": 0.0, "steps": 0.0}
        for config in trials:
            model = sharing_copy(self._pristine)  # a user would unload the adapter, which is not timed either
            started = self._clock()
            found["steps"] += train_alone(model, self._base, self._tokens, config, folder, self._clock)
            found["whole"] += self._clock() - started
        return {name: 1000 * value / len(trials) / steps for name, value in found.items()}


def measure(tokens: int, cell: Cell, repeats: int, steps: int, packs: list[int]) -> dict[str, Any]:
    names = ["sequential", *(str(pack) for pack in packs if pack * tokens <= MOST_TOKENS)]
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in names} for clock in ("whole", "steps")}
    for repeat in range(repeats + 1):  # the first one warms up
        for name in names:
            timed = steps if repeat else 1
            found = cell.sequential(timed) if name == "sequential" else cell.packed(int(name), timed)
            if repeat:
                for clock, value in found.items():
                    times[clock][name].append(value)
    ratios = {clock: speedups(values) for clock, values in times.items()}
    packed = "  ".join(
        f"K={name} {ratio:.2f}x ({ratios['steps'][name]:.2f}x)" for name, ratio in ratios["whole"].items()
    )
    alone = {clock: statistics.median(values["sequential"]) for clock, values in times.items()}
    print(
        f"{tokens:5d} tokens: sequential {alone['whole']:.1f} ms ({alone['steps']:.1f} ms in steps)  {packed}",
        flush=True,
    )
    return {
        "tokens_per_trial_step": tokens,
        "rows": cell.rows,
        "length": cell.length,
        "steps": steps,
        "ms_per_trial_step": {
            clock: {name: [round(value, 3) for value in found] for name, found in values.items()}
            for clock, values in times.items()
        },
        "speedup": {clock: {name: round(ratio, 3) for name, ratio in found.items()} for clock, found in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--packs", type=int, nargs="+", default=list(PACKS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", type=int, help="timed steps of each trial, instead of fewer for more tokens")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: the process's CPU time, for ratios on a shared machine, with OMP_NUM_THREADS=1",
    )
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    base = load_base(MODEL, torch.device("cpu"))
    pristine = sharing_copy(base.model)  # before adapters are attached
    with tempfile.TemporaryDirectory() as scratch:
        cells = []
        for tokens in options.tokens:
            cell = Cell(tokens, pristine, load_base(MODEL, torch.device("cpu")), Path(scratch), CLOCKS[options.clock])
            cells.append(measure(tokens, cell, options.repeats, options.steps or STEPS[tokens], options.packs))
    what = "ms per trial and step: packs of K trials, and Trainer + peft one trial after another in one process"
    result = {"clock": options.clock, "ranks": RANKS, "repeats": options.repeats, "cells": cells}
    write_result("equal_work", what, result, options.output)


if __name__ == "__main__":
    main()
