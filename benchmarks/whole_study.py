"""A whole study over its longest trial alone: python benchmarks/whole_study.py

The study is studies/rank_alpha.yaml with more trials. Of those that trained to their end, the one with the most
floating-point operations is run again, alone, by the same command: a study of that one configuration. Both are timed
twice: from the start of the process to its end (imports, the base, reports, MLflow and all), and from the first
trial's start to the end of the last.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "studies" / "rank_alpha.yaml"


def run(study: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Run a study in `folder`; returns its seconds and what its trials said."""
    command = [sys.executable, "-m", "lora_lab.sweep", str(study), "--json", *options]
    started = time.perf_counter()
    first = last = started
    events: list[dict[str, Any]] = []
    with (
        (folder / "errors.txt").open("w") as errors,
        subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True) as process,  # noqa: S603
    ):
        assert process.stdout is not None
        for line in process.stdout:
            event = {"event": ""} | json.loads(line)
            if event["event"] == "trial_started" and first == started:
                first = time.perf_counter()
            if event["event"] == "trial_ended":
                last = time.perf_counter()
            events.append(event)
    if process.returncode:
        sys.exit((folder / "errors.txt").read_text())
    return {"wall_s": time.perf_counter() - started, "trials_s": last - first, "events": events}


def longest(events: list[dict[str, Any]]) -> tuple[int, dict[str, Any], float]:
    """Number, configuration and floating-point operations of the trial that trained most to its end."""
    configs = {event["number"]: event["config"] for event in events if event["event"] == "trial_started"}
    flops = {event["number"]: event["metrics"]["total_flos"] for event in events if event["event"] == "finished"}
    number = max(flops, key=flops.__getitem__)
    return number, configs[number], flops[number]


def alone(config: dict[str, Any], folder: Path) -> Path:
    """A study of this one configuration."""
    study = yaml.safe_load(STUDY.read_text())
    study["study_name"] = "alone"
    chosen = {
        "r": config["lora"]["r"],
        "alpha_ratio": config["lora"]["alpha_ratio"],
        "target_modules": config["lora"]["target_modules"],
        "num_train_epochs": config["training"]["num_train_epochs"],
        "learning_rate": config["training"]["learning_rate"],
    }
    study["sweep"] = {
        "sampler": "grid",
        "pruner": "none",
        "pack_size": 1,
        "parameters": {name: {"values": [value]} for name, value in chosen.items()},
    }
    path = folder / "alone.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def states(events: list[dict[str, Any]]) -> dict[str, int]:
    return next(event["states"] for event in events if event["event"] == "stopped")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of lora_lab.sweep")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    changes = [part for change in options.set for part in ("--set", change)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        study = run(STUDY, folder, "--trials", str(options.trials), *changes)
        number, config, flops = longest(study["events"])
        single = run(alone(config, folder), folder, *changes)
    clocks = ("wall_s", "trials_s")
    seconds = {
        name: {clock: round(one[clock], 2) for clock in clocks} for name, one in (("study", study), ("alone", single))
    }
    ratios = {clock: round(study[clock] / single[clock], 2) for clock in clocks}
    print(f"{options.trials} trials: {seconds['study']}; trial {number} alone: {seconds['alone']}; ratio {ratios}")
    from workload import write_result

    result = {
        "trials": options.trials,
        "changes": options.set,
        "states": states(study["events"]),
        "longest": {"number": number, "flops": flops, "config": config},
        "seconds": seconds,
        "ratio": ratios,
    }
    what = "a study of many trials over its longest trial alone: the whole command (wall_s), and trials only (trials_s)"
    write_result("whole_study", what, result, options.output)


if __name__ == "__main__":
    main()
