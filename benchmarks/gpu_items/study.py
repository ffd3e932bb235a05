"""A whole study by the command that users give: its time over that of its longest trial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

from gpu_items.cells import Cell, Context

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

MINIATURE = {
    "data.max_train_examples": "16",
    "data.max_length": "32",
    "sweep.confirm": "null",
    "sweep.parameters.num_train_epochs.values": "[1]",
}


class Course:
    """What the events of a sweep tell, each with the seconds since its start."""

    def __init__(self) -> None:
        self.events: Counter = Counter()
        self.first_step: float | None = None
        self.trials: list[list[Any]] = []
        self.spent: list[float] = []
        self._started: dict[int, float] = {}
        self._last: dict[str, dict] = {}

    def take(self, event: dict, now: float) -> None:
        kind = event.get("event") or event.get("kind")
        self.events[kind] += 1
        match kind:
            case "trial_started":
                self._started[event["number"]] = now
            case "trial_ended":
                self.spent.append(now - self._started.get(event["number"], 0.0))
                reason = str(event.get("reason", ""))[:80]
                self.trials.append([event["number"], event.get("state"), event.get("eval_loss"), reason])
            case "logged":
                self.first_step = self.first_step or now
            case "stopped" | "verdict":
                self._last[kind] = event

    def figures(self, whole_s: float) -> dict:
        longest = max(self.spent, default=None)
        training = whole_s - (self.first_step or 0.0)
        stopped = self._last.get("stopped", {})
        sentences = self._last.get("verdict", {}).get("sentences", [])
        return {
            "seconds_to_first_step": self.first_step,
            "longest_trial_s": longest,
            "over_longest": whole_s / longest if longest else None,
            "from the first step, over longest": training / longest if longest else None,
            "events": dict(self.events),
            "trials": self.trials,
            "stopped": {
                name: stopped.get(name) for name in ("done", "total_trials", "states", "best_eval_loss", "elapsed_s")
            },
            "verdict": [str(sentence)[:160] for sentence in sentences][:4],
        }


def study(context: Context, trials: int, limit_s: float, variables: dict[str, str]) -> dict:
    folder = context.scratch / f"study-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "lora_lab.sweep", str(context.project / "studies" / "rank_alpha.yaml"), "--json"]
    command += ["--set", "study_name=once", "--trials", str(2 if context.toy else trials)]
    for key, value in MINIATURE.items() if context.toy else ():
        command += ["--set", f"{key}={value}"]
    environment = os.environ | variables | _paths(context, folder) | {"OMP_NUM_THREADS": "1" if context.toy else "4"}
    begun, course = time.monotonic(), Course()
    with (
        (folder / "stderr.txt").open("w") as errors,
        subprocess.Popen(  # noqa: S603 -- this project's own command
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        cut = threading.Timer(limit_s, process.terminate)  # the sweep ends in good order then
        cut.start()
        for event in _events(process.stdout or ()):
            course.take(event, time.monotonic() - begun)
        code = process.wait()
        cut.cancel()
    whole = time.monotonic() - begun
    return {
        "rc": code,
        "cut": whole > limit_s,
        "seconds": whole,
        **course.figures(whole),
        "files": sorted(file.name for file in (folder / "runs" / "once").glob("*"))[:20],
        "stderr": (folder / "stderr.txt").read_text()[-800:],
    }


def _paths(context: Context, folder: Path) -> dict[str, str]:
    """Where Python finds the project, and what is carried as an archive, which is unpacked here."""
    paths = [str(context.project), os.environ.get("PYTHONPATH", "")]
    for archive in sorted(context.site.glob("*.zip")) if context.site else []:
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(folder / archive.stem)
        paths.append(str(folder / archive.stem))
    return {"PYTHONPATH": os.pathsep.join(paths)}


def _events(lines: Iterable[str]) -> Iterable[dict]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def study_item(context: Context, trials: int, limit_s: float, **variables: str) -> list[Cell]:
    limit_s *= 3 if context.toy else 1  # a CPU may be shared, and most of a miniature's time goes into imports
    return [Cell("rank_alpha.yaml", partial(study, context, trials, limit_s, variables), 15, limit_s + 40)]
