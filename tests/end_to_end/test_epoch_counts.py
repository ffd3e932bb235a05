"""Studies that search the number of epochs: one run trains the longest, and gives exactly what the others would."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from sweep_process import study

from lora_lab.results.folder import RunFolder
from lora_lab.study.events import Finished, Logged
from lora_lab.tracking.journal import read
from lora_lab.training.base.loading import load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.packed_engine import PackedEngine

STEPS_PER_EPOCH = 4
MODEL = {"model_name_or_path": "builtin/tiny-llama", "dtype": "float64"}
"""The whole of it, on which a lower loss can be learned of as few rows."""
EPOCHS = {"num_train_epochs": {"values": [1, 2, 3]}}
GRID = {
    "sampler": "grid",
    "pruner": "none",
    "n_trials": None,
    "parameters": {**EPOCHS, "r": {"values": [2, 4]}},
    "verdict": {"margin": 0.9},
}
TPE = {
    "sampler": "tpe",
    "pruner": "asha",
    "n_trials": 8,
    "parameters": {**EPOCHS, "learning_rate": {"min": 1e-3, "max": 2e-2, "log": True}},
    "verdict": {"margin": 0.9},
}
TIMES = {"train_seconds", "eval_seconds", "tokens_per_second"}


def logged_steps(folder):
    """Optimizer steps that were trained, by trial."""
    return Counter(entry.record.number for entry, _ in read(folder) if isinstance(entry.record, Logged))


def alone(lab, config, label):
    """The figures and the folder of a trial that has an engine for itself."""
    config = lab.found_from_here(config)
    base = load_base(config.model, torch.device("cpu"))
    engine = PackedEngine(base, DataCatalog(base.tokenizer, lab.folder / "cache"), lab.folder / "alone" / label)
    engine.admit(0, config)
    events = []
    while engine.active:
        events += engine.step()
    [final] = [event for event in events if isinstance(event, Finished)]
    return final.metrics, engine.trial_folder(0)


def check_against_alone(lab, result, folder):
    metrics, files = alone(lab, result.config, str(result.number))
    exact = {name: value for name, value in metrics.items() if name not in TIMES | {"eval_loss"}}
    assert {name: result.metrics[name] for name in exact} == exact
    assert result.eval_loss == pytest.approx(metrics["eval_loss"], rel=1e-9)
    mine, theirs = (load_file(path / "adapter_model.safetensors") for path in (folder, files / "adapter"))
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.linalg.vector_norm(mine[name] - tensor) <= 1e-8 * torch.linalg.vector_norm(tensor), name


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [GRID, TPE], ids=["grid", "tpe"])
def test_the_longest_are_trained_and_the_rest_equals_trials_trained_apart(lab, sweep):
    lab.write(study(model=MODEL, sweep=sweep))
    ended = lab.sweep()
    assert ended.code == 0, ended.err
    results = lab.results()
    assert len(results) == (sweep["n_trials"] or 6)
    shared = [one for one in results.values() if one.state == "shared"]
    assert len(shared) >= 2
    steps = logged_steps(lab.run_folder())
    for number, one in results.items():
        trained = len(one.curve) if one.state == "pruned" else one.config.training.num_train_epochs
        assert steps[number] == (0 if one.state == "shared" else STEPS_PER_EPOCH * trained)
    folder = RunFolder(lab.run_folder())
    for one in shared:
        check_against_alone(lab, one, folder.adapter_of(one))
    _, children = lab.children()
    tags = {int(run.data.tags["lora_lab.trial"]): run.data.tags for run in children}
    assert {number: tags[number].get("shares") for number in results} == {
        number: None if one.source is None else str(one.source) for number, one in results.items()
    }
    best = min((one for one in results.values() if one.has_value), key=lambda one: (one.eval_loss, one.number))
    kept = load_file(lab.run_folder() / "best/adapter/adapter_model.safetensors")
    expected = load_file(folder.adapter_of(best) / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in expected.items())
    assert "read off another trial" in ended.out


@pytest.mark.slow
def test_the_best_may_be_a_run_that_was_read_off(lab):
    """Sixteen examples are learned by heart: after six epochs the loss is 0.2 nats above that after two."""
    sweep = GRID | {"parameters": {"num_train_epochs": {"values": [2, 6]}, "r": {"values": [16]}}}
    lab.write(study(model=MODEL, training={"learning_rate": 0.01}, sweep=sweep))
    assert lab.sweep().code == 0
    results = lab.results()
    best = min((one for one in results.values() if one.has_value), key=lambda one: one.eval_loss)
    assert best.state == "shared", {number: one.eval_loss for number, one in results.items()}
    check_against_alone(lab, best, lab.run_folder() / "best/adapter")
    assert f"trial {best.number}" in lab.report().out or (lab.run_folder() / "report.html").exists()


@pytest.mark.slow
def test_runs_under_a_decay_branch_off_where_it_begins(lab):
    training = {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.5, "warmup_steps": 1}
    lab.write(study(model=MODEL, training=training, sweep=GRID))
    ended = lab.sweep()
    assert ended.code == 0, ended.err
    results = lab.results()
    assert {one.state for one in results.values()} == {"complete"}
    steps = logged_steps(lab.run_folder())
    by_epochs = {epochs: [] for epochs in (1, 2, 3)}
    for number, one in results.items():
        by_epochs[one.config.training.num_train_epochs].append(steps[number])
    assert by_epochs == {1: [2, 2], 2: [4, 4], 3: [12, 12]}
    kept = [one for one in results.values() if (lab.run_folder() / f"trials/{one.number:04d}/adapter").is_dir()]
    assert {2, 3} <= {one.config.training.num_train_epochs for one in kept}  # others are far behind, so dropped
    for one in kept:
        check_against_alone(lab, one, lab.run_folder() / f"trials/{one.number:04d}/adapter")
