"""A whole study on scripted trials: search, pruning, retrainings, report and MLflow, and no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest

SCRIPT = """
import io, json, sys
from lora_lab.results.folder import RunFolder
from lora_lab.runner.options import RunOptions
from lora_lab.runner.scripted import scripted
from lora_lab.runner.session import run_study
from lora_lab.runner.stopping import StopRequest
from lora_lab.study.spec import StudySpec
from lora_lab.terminal.display import Display, JsonView
from lora_lab.training.memory.room import DEFAULT_LIMIT

spec = StudySpec.model_validate(
    {
        "study_name": "scripted",
        "model": {"model_name_or_path": "none/none"},
        "data": {"train": "none.jsonl"},
        "training": {"num_train_epochs": 3, "lr_scheduler_type": "constant"},
        "sweep": {
            "sampler": "grid",
            "pruner": "asha",
            "parameters": {"r": {"values": [2, 4, 8, 16]}, "num_train_epochs": {"values": [1, 2, 3]}},
            "confirm": {"top": 2, "seeds": 2},
        },
    }
)
folder = RunFolder.of(spec.study_name)
options = RunOptions(memory_limit=DEFAULT_LIMIT, tracking_uri="sqlite:///mlflow.db")
for expected_to_run in (True, False):
    display, backend = Display(JsonView(sys.stdout)), scripted(folder, pack_size=4)
    end = run_study(spec, folder, "test", options, display=display, stop=StopRequest(), backend=backend)
    assert end.complete
    assert end.ran == expected_to_run
    assert end.tracking_note is None
print(json.dumps({"event": "end", "best": end.results.findings.best.number, "torch": "torch" in sys.modules}))
"""


@pytest.mark.timeout(300)
def test_the_whole_platform_runs_on_scripted_trials(tmp_path, migrated_database):
    shutil.copy(migrated_database, tmp_path / "mlflow.db")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    events = [line["event"] for line in told]
    assert {"started", "trial_started", "evaluated", "milestone", "finished", "retraining", "stopped"} <= set(events)
    [stopped] = [line for line in told if line["event"] == "stopped"]
    assert stopped["done"] == stopped["total_trials"] == 12 + 4
    assert stopped["states"]["shared"] > 0
    assert not told[-1]["torch"]
    folder = tmp_path / "runs" / "scripted"
    assert "Best: trial 0 (r=16" in (folder / "summary.md").read_text()
    assert (folder / "report.html").stat().st_size > 10_000
    chosen = json.loads((folder / "best" / "adapter" / "adapter_config.json").read_text())
    assert (chosen["r"], chosen["num_train_epochs"]) == (16, 3)
