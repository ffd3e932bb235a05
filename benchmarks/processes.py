"""K trials in a process each with `Trainer` + `peft`, and in one pack: python benchmarks/processes.py

Every child process imports, loads the base, trains, and says how long its training steps took and how much memory it
had at most. So the comparison can be read with and without start-up, and in bytes.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TOKENS = (64, 512, 2048)
STEPS = {64: 60, 512: 24, 2048: 8}


def child(tokens: int, steps: int, numbers: list[int], pack: int | None) -> dict[str, Any]:
    """Train these trials in this process: in a pack, or (one trial) with `Trainer` + `peft`."""
    import torch
    from workload import MODEL, SHAPES, RandomTokens, make_trials, train_alone, train_packed

    from lora_lab.training.base.loading import load_base
    from lora_lab.training.packed_engine import PackedEngine

    rows, length = SHAPES[tokens]
    base = load_base(MODEL, torch.device("cpu"))
    data = RandomTokens(max(64, rows * 4), length)
    trials = make_trials(max(numbers) + 1, rows, steps + 1, length=length)
    with tempfile.TemporaryDirectory() as folder:
        if pack is None:
            [number] = numbers
            seconds = train_alone(base.model, base, data, trials[number], Path(folder))
        else:
            engine = PackedEngine(base, data, Path(folder))
            seconds = train_packed(engine, [trials[number] for number in numbers], pack, 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"train_s": seconds, "peak_rss_bytes": peak}


def run_child(tokens: int, steps: int, numbers: list[int], pack: int | None) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", json.dumps([tokens, steps, numbers, pack])]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- this very file
    if done.returncode:
        sys.exit(done.stderr)
    return {"wall_s": time.perf_counter() - started, **json.loads(done.stdout.splitlines()[-1])}


def measure(tokens: int, count: int, steps: int) -> dict[str, Any]:
    numbers = list(range(count))
    alone = [run_child(tokens, steps, [number], None) for number in numbers]
    packed = run_child(tokens, steps, numbers, count)
    wall, train, memory = (sum(one[key] for one in alone) for key in ("wall_s", "train_s", "peak_rss_bytes"))
    print(
        f"{tokens:5d} tokens, {count} trials: {wall:.1f} s in processes, {packed['wall_s']:.1f} s packed "
        f"({wall / packed['wall_s']:.2f}x; training alone {train / packed['train_s']:.2f}x; "
        f"memory {memory / 2**20:.0f} and {packed['peak_rss_bytes'] / 2**20:.0f} MiB)",
        flush=True,
    )
    return {
        "tokens_per_trial_step": tokens,
        "trials": count,
        "steps": steps,
        "processes": alone,
        "packed": packed,
        "speedup_with_startup": round(wall / packed["wall_s"], 3),
        "speedup_of_training": round(train / packed["train_s"], 3),
        "memory_ratio": round(memory / packed["peak_rss_bytes"], 3),
    }


def step_memory(tokens: int, count: int) -> list[dict[str, float]]:
    """Of each trial alone: the peak of a step as counted, as predicted, and the part that a pack has only once."""
    import torch
    from workload import MODEL, SHAPES, RandomTokens, make_trials

    from lora_lab.study.events import Finished
    from lora_lab.training.base.loading import load_base
    from lora_lab.training.packed_engine import PackedEngine

    rows, length = SHAPES[tokens]
    names = {"peak": "peak_memory_bytes", "predicted": "predicted_memory_bytes", "base": "base_bytes"}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        base = load_base(MODEL, torch.device("cpu"))
        engine = PackedEngine(base, RandomTokens(max(64, rows * 4), length), Path(folder))
        for number, config in enumerate(make_trials(count, rows, 1, length=length)):
            engine.admit(number, config)
            [metrics] = [event.metrics for event in engine.step() if isinstance(event, Finished)]
            found.append({"r": config.lora.r} | {name: metrics[metric] for name, metric in names.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), choices=list(TOKENS))
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, help="timed steps of each trial")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(*json.loads(options.child))))
        return
    cells = [
        measure(tokens, options.trials, options.steps or STEPS[tokens])
        | {"counted_step_bytes": step_memory(tokens, options.trials)}
        for tokens in options.tokens
    ]
    from workload import RANKS, write_result

    what = "seconds and peak memory: one process per trial with Trainer + peft, and one process with a pack of all"
    write_result("processes", what, {"ranks": RANKS[: options.trials], "cells": cells}, options.output)


if __name__ == "__main__":
    main()
