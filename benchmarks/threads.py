"""What waiting threads cost beside busy neighbors: python benchmarks/threads.py

An OpenMP thread that has nothing to do spins for a while before it sleeps. On idle cores that saves the wake-up; beside
a busy process it takes the core from the thread that it waits for. Every setting of the environment gets a process of
its own, with as many busy processes beside it as the cell says; settings take turns, so that a change of the machine's
speed meets all of them. The step is one of a pack of four trials, 64 tokens each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "GOMP_SPINCOUNT=50000": {"GOMP_SPINCOUNT": "50000"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
NEIGHBORS = (0, 1, 2)
PACK, TOKENS = 4, 64
SECONDS = 6.0
"""Of steps, in each process, after those that warm up."""


@contextmanager
def neighbors(count: int) -> Iterator[None]:
    """So many processes that compute without a pause."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def steps() -> list[float]:
    """Milliseconds of the steps of one pack, in this process."""
    import torch  # reads the environment that the parent has set
    from workload import MODEL, RandomTokens, make_trials

    from lora_lab.training.base.loading import load_base
    from lora_lab.training.packed_engine import PackedEngine

    with tempfile.TemporaryDirectory() as scratch:
        engine = PackedEngine(load_base(MODEL, torch.device("cpu")), RandomTokens(64, TOKENS), Path(scratch))
        for number, config in enumerate(make_trials(PACK, 1, 100_000, length=TOKENS)):
            engine.admit(number, config)
        for _ in range(5):
            engine.step()
        found: list[float] = []
        begun = time.perf_counter()
        while time.perf_counter() - begun < SECONDS or len(found) < 5:
            started = time.perf_counter()
            engine.step()
            found.append(1000 * (time.perf_counter() - started))
    return found


def measure(setting: str, busy: int) -> float:
    """Milliseconds of a median step."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES} | SETTINGS[setting]
    with neighbors(busy):
        output = subprocess.run(  # noqa: S603
            [sys.executable, __file__, "--steps"], env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
    return statistics.median(json.loads(output))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--neighbors", type=int, nargs="+", default=list(NEIGHBORS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--steps", action="store_true", help="only the steps, in this process: what the others start")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.steps:
        print(json.dumps(steps()))
        return
    from workload import write_result  # not in the processes that are timed

    cells = []
    for busy in options.neighbors:
        times: dict[str, list[float]] = {setting: [] for setting in options.settings}
        for _ in range(options.repeats):
            for setting, found in times.items():
                found.append(round(measure(setting, busy), 2))
        cells.append({"neighbors": busy, "ms_per_step": times})
        print(f"{busy} busy neighbors: " + "; ".join(f"{name} {value}" for name, value in times.items()), flush=True)
    what = f"ms of a median step of a pack of {PACK} trials, {TOKENS} tokens each, beside busy processes"
    write_result("threads", what, {"repeats": options.repeats, "cells": cells}, options.output)


if __name__ == "__main__":
    main()
