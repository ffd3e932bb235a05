"""A study that was really trained, and what each of its steps gave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from export_made import study, write_data

REPOSITORY = Path(__file__).parents[2]


def sweep(folder: Path, **sections: Any) -> Path:
    """Run a study to its end in `folder`; its run folder."""
    write_data(folder)
    content = study(**sections)
    (folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    command("lora_lab.sweep", "study.yaml", folder=folder)
    return folder / "runs" / content["study_name"]


def command(module: str, *words: str, folder: Path) -> str:
    """Run a command as a user does; what it prints."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    words = (sys.executable, "-m", module, *words)
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def steps(run: Path, number: int) -> dict[str, list[float]]:
    """Loss, norm of the gradients and learning rate of each optimizer step, and eval_loss of each evaluation."""
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    own = [line for line in lines if line.get("number") == number]
    logged = [line for line in own if line["kind"] == "Logged"]
    found = {name: [line[name] for line in logged] for name in ("loss", "grad_norm", "learning_rate")}
    return found | {"eval_loss": [line["eval_loss"] for line in own if line["kind"] == "Evaluated"]}


def trainer_steps(state: Path) -> dict[str, list[float]]:
    """The same from a `trainer_state.json`."""
    history = json.loads(state.read_text())["log_history"]
    logged = [entry for entry in history if "loss" in entry]
    found = {name: [entry[name] for entry in logged] for name in ("loss", "grad_norm", "learning_rate")}
    return found | {"eval_loss": [entry["eval_loss"] for entry in history if "eval_loss" in entry]}
