"""The same trials packed, and one after another with `Trainer` + `peft`: python benchmarks/equal_work.py

Grid: tokens per trial and step x trials in a pack. Both sides train the same mix of ranks, in one process, on one
loaded base, and take turns, so that a change of the machine's speed meets both. Only training steps are timed: not
loading, making adapters, counting memory, evaluating or saving.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from workload import MODEL, RANKS, SHAPES, RandomTokens, make_trials, train_alone, train_packed, write_result

from lora_lab.training.base import load_base
from lora_lab.training.engine import PackedEngine
from lora_lab.training.reference_model import sharing_copy

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.training.base import Base

STEPS = {64: 16, 128: 16, 256: 10, 512: 8, 1024: 5, 2048: 3, 4096: 2}
"""Timed steps of each of eight trials."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PACKS = (1, 2, 4, 8, 16, 32)
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

    def packed(self, pack: int, steps: int) -> float:
        """ms per trial and step in packs of `pack`; at least eight trials, and as many trial-steps as for eight."""
        count = max(8, pack)
        timed = max(2, steps * 8 // count)
        trials = make_trials(count, self.rows, timed + 1, length=self.length)
        seconds = train_packed(self._engine, trials, pack, self._numbers, self._clock)
        self._numbers += count
        return 1000 * seconds / count / timed

    def sequential(self, steps: int) -> float:
        """ms per trial and step of `Trainer`, one trial after another."""
        trials = make_trials(8, self.rows, steps + 1, length=self.length)
        folder = self._folder / "trainer"
        seconds = sum(
            train_alone(sharing_copy(self._pristine), self._base, self._tokens, config, folder, self._clock)
            for config in trials
        )
        return 1000 * seconds / len(trials) / steps


def measure(tokens: int, cell: Cell, repeats: int, steps: int, packs: list[int]) -> dict[str, Any]:
    packs = [pack for pack in packs if pack * tokens <= MOST_TOKENS]
    times: dict[str, list[float]] = {"sequential": [], **{str(pack): [] for pack in packs}}
    for repeat in range(repeats + 1):  # the first one warms up
        timed = steps if repeat else 1
        found = {"sequential": cell.sequential(timed)} | {str(pack): cell.packed(pack, timed) for pack in packs}
        for name, value in found.items():
            if repeat:
                times[name].append(value)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times["sequential"], times[name], strict=True))
        for name in times
        if name != "sequential"
    }
    middle = {name: statistics.median(values) for name, values in times.items()}
    packed = "  ".join(f"K={name} {middle[name]:.1f} ({ratio:.2f}x)" for name, ratio in ratios.items())
    print(f"{tokens:5d} tokens: sequential {middle['sequential']:.1f} ms  {packed}", flush=True)
    return {
        "tokens_per_trial_step": tokens,
        "rows": cell.rows,
        "length": cell.length,
        "steps": steps,
        "ms_per_trial_step": {name: [round(value, 3) for value in values] for name, values in times.items()},
        "speedup": {name: round(ratio, 3) for name, ratio in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--packs", type=int, nargs="+", default=list(PACKS))
    parser.add_argument("--repeats", type=int, default=3)
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
