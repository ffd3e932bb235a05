"""Help and mistakes answer at once: no command imports torch, MLflow or Optuna to say them."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

LIMIT_S = 0.5
HEAVY = {"torch", "transformers", "peft", "mlflow", "optuna", "plotly", "pandas", "scipy"}


def call(folder, *words: str, options: tuple[str, ...] = ()) -> tuple[subprocess.CompletedProcess, float]:
    began = time.perf_counter()
    ended = subprocess.run([sys.executable, *options, *words], cwd=folder, capture_output=True, text=True, check=False)
    return ended, time.perf_counter() - began


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-m", "lora_lab.sweep", "--help"], 0),
        (["-m", "lora_lab.plan", "--help"], 0),
        (["-m", "lora_lab.report", "--help"], 0),
        (["-m", "lora_lab", "--help"], 0),
        (["-m", "lora_lab.sweep", "bad.yaml"], 2),
        (["-m", "lora_lab", "sweep", "bad.yaml"], 2),
        (["-m", "lora_lab.plan", "bad.yaml", "--device", "H200"], 2),
        (["-m", "lora_lab.plan", "bad.yaml", "--device", "abacus"], 2),
    ],
)
def test_help_and_mistakes_answer_in_half_a_second(tmp_path, words, code):
    (tmp_path / "bad.yaml").write_text("study_name: x\nmodle: {}\n")
    calls = [call(tmp_path, *words) for _ in range(3)]
    assert {ended.returncode for ended, _ in calls} == {code}
    assert min(seconds for _, seconds in calls) < LIMIT_S

    traced, _ = call(tmp_path, *words, options=("-X", "importtime"))
    imported = {line.split("|")[-1].strip() for line in traced.stderr.splitlines() if line.startswith("import time:")}
    assert "typer" in imported
    assert not imported & HEAVY
