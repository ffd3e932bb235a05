"""Help and mistakes answer at once: no command imports torch, MLflow or Optuna to say them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"torch", "transformers", "peft", "mlflow", "optuna", "plotly", "pandas", "scipy"}
MODULES = 500
"""What a command may import before it answers; with numpy or one of the heavy ones it would be far more."""


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-m", "lora_lab.sweep", "--help"], 0),
        (["-m", "lora_lab.plan", "--help"], 0),
        (["-m", "lora_lab.report", "--help"], 0),
        (["-m", "lora_lab.export", "--help"], 0),
        (["-m", "lora_lab.evaluate", "--help"], 0),
        (["-m", "lora_lab.evaluate", "bad.yaml", "--tasks", "arc_easy"], 2),
        (["-m", "lora_lab", "--help"], 0),
        (["-m", "lora_lab.sweep", "bad.yaml"], 2),
        (["-m", "lora_lab", "sweep", "bad.yaml"], 2),
        (["-m", "lora_lab.export", "bad.yaml", "--to", "trl"], 2),
        (["-m", "lora_lab.export", "bad.yaml", "--to", "abacus"], 2),
        (["-m", "lora_lab.plan", "bad.yaml", "--device", "H200"], 2),
        (["-m", "lora_lab.plan", "bad.yaml", "--device", "abacus"], 2),
    ],
)
def test_help_and_mistakes_are_answered_before_anything_heavy_is_imported(tmp_path, words, code):
    (tmp_path / "bad.yaml").write_text("study_name: x\nmodle: {}\n")
    command = [sys.executable, "-X", "importtime", *words]
    traced = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert traced.returncode == code
    imported = {line.split("|")[-1].strip() for line in traced.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in imported
    assert not imported & HEAVY
    assert len(imported) < MODULES
