"""Trainers that are given an export reach the losses of the trial, step for step."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from export_trained import steps, sweep, trainer_steps
from safetensors.torch import load_file

import lora_lab.export
from lora_lab.command_line import run_command

SAME = 2e-6
"""Relative, in float32: another order of the same sums."""
KEEP = {"margin": 0.99}
"""So wide that the adapters of all trials are kept."""


@pytest.fixture(scope="module")
def one_step_epochs(tmp_path_factory):
    """Trials whose whole epoch is one step, so that the order of the examples cannot matter."""
    folder = tmp_path_factory.mktemp("one-step")
    parameters = {"use_rslora": {"values": [False, True]}, "use_dora": {"values": [False, True]}}
    return sweep(folder, sweep={"parameters": parameters, "verdict": KEEP})


@pytest.fixture(scope="module")
def ordered(tmp_path_factory):
    """Trials of several steps an epoch, whose last batch is short, with all that only the script can say."""
    folder = tmp_path_factory.mktemp("ordered")
    training = {
        "per_device_train_batch_size": 5,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "lr_scheduler_type": "warmup_stable_decay",
        "decay_ratio": 0.4,
        "loraplus_lr_ratio": 4.0,
        "gradient_checkpointing": True,
        "max_grad_norm": 0.3,
        "per_device_eval_batch_size": 3,
        "eval_steps": 2,
    }
    lora = {"target_modules": "all-linear+head", "layers": "every_2nd", "init_lora_weights": "gaussian"}
    parameters = {"packing": {"values": [False, True]}, "quantization": {"values": ["none", "nf4"]}}
    return sweep(folder, training=training, lora=lora, sweep={"parameters": parameters, "verdict": KEEP})


def export(run: Path, target: str, number: int) -> Path:
    with run_in(run.parents[1], "study.yaml", "--to", target, "--trial", str(number)), pytest.raises(SystemExit) as end:
        run_command(lora_lab.export.export)
    assert end.value.code == 0
    return run / "exports" / f"{number:04d}" / target


@contextmanager
def run_in(folder: Path, *arguments: str):
    before, words = Path.cwd(), sys.argv
    os.chdir(folder)
    sys.argv = [words[0], *arguments]
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = words


def train_by_script(folder: Path) -> dict[str, list[float]]:
    with run_in(folder):
        runpy.run_path("train_peft.py", run_name="__main__")
    return trainer_steps(folder / "output" / "trainer_state.json")


def agree(found: dict[str, list[float]], meant: dict[str, list[float]], tolerance: float = SAME) -> None:
    assert {name: len(values) for name, values in found.items()} == {
        name: len(values) for name, values in meant.items()
    }
    for name, values in meant.items():
        assert found[name] == pytest.approx(values, rel=tolerance, abs=1e-9), name


def adapters_agree(found: Path, meant: Path, tolerance: float) -> None:
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (meant, found))
    assert theirs.keys() == ours.keys()
    assert max(float((theirs[name] - ours[name]).abs().max()) for name in ours) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_the_script_reaches_the_losses_of_trials_with_dora_and_rslora(one_step_epochs, number):
    folder = export(one_step_epochs, "peft", number)
    agree(train_by_script(folder), steps(one_step_epochs, number))
    adapters_agree(folder / "output", one_step_epochs / "trials" / f"{number:04d}" / "adapter", 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_the_script_sees_the_examples_in_our_order(ordered, number):
    """Packed rows, 4-bit bases, LoRA+, clipping, an adapter on the head, and evaluations in several batches."""
    folder = export(ordered, "peft", number)
    agree(train_by_script(folder), steps(ordered, number), 2e-5)


@pytest.mark.slow
def test_the_script_stops_where_the_trial_did_and_leaves_the_same_adapter(tmp_path):
    best = {"load_best_model_at_end": True, "early_stopping_patience": 2, "early_stopping_threshold": 0.3}
    rate = {"learning_rate": 0.02, "num_train_epochs": 9, "lr_scheduler_type": "constant", "warmup_steps": 0}
    run = sweep(tmp_path, training=best | rate, sweep={"verdict": KEEP})
    folder = export(run, "peft", 0)
    agree(train_by_script(folder), steps(run, 0), 2e-5)
    state = json.loads((folder / "output" / "trainer_state.json").read_text())
    ends = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if '"TrialEnded"' in line]
    assert state["best_global_step"] == ends[0]["metrics"]["best_step"]
    assert state["global_step"] == ends[0]["metrics"]["steps"] < state["max_steps"]
    adapters_agree(folder / "output", run / "trials" / "0000" / "adapter", 1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(4))
def test_trl_reaches_the_losses_of_the_trial(one_step_epochs, number):
    from trl.scripts import sft

    folder = export(one_step_epochs, "trl", number)
    settings = yaml.safe_load((folder / "trl.yaml").read_text())
    (folder / "saving.yaml").write_text(yaml.safe_dump(settings | {"save_strategy": "epoch", "disable_tqdm": True}))
    with run_in(folder):
        sft.main(*sft.make_parser().parse_args_and_config(["--config", "saving.yaml"]))
    agree(trainer_steps(folder / "output" / "checkpoint-5" / "trainer_state.json"), steps(one_step_epochs, number))
    adapters_agree(folder / "output", one_step_epochs / "trials" / f"{number:04d}" / "adapter", 1e-5)


@pytest.mark.slow
def test_the_printed_trl_command_runs(one_step_epochs):
    folder = export(one_step_epochs, "trl", 0)
    assert "trl sft --config trl.yaml" in (folder / "README.md").read_text()
    tool = shutil.which("trl", path=str(Path(sys.executable).parent))
    environment = os.environ | {"PYTHONPATH": str(Path(lora_lab.__file__).parents[1])}
    done = subprocess.run(
        [tool, "sft", "--config", "trl.yaml"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [f"'loss': '{loss:.4g}'" for loss in steps(one_step_epochs, 0)["loss"]]
    assert all(loss in done.stdout for loss in losses)
    assert (folder / "output" / "adapter_model.safetensors").is_file()
