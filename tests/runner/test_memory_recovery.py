"""A device that runs out of memory in the middle of a study: packs shrink, and no result changes."""

from __future__ import annotations

import io
import random

import pytest
import torch

from lora_lab.results.folder import RunFolder
from lora_lab.results.storage import storage_url
from lora_lab.runner.options import RunOptions
from lora_lab.runner.session import run_study
from lora_lab.runner.stopping import StopRequest
from lora_lab.search.store import open_store
from lora_lab.study.spec import StudySpec
from lora_lab.terminal.display import Display, PlainView
from lora_lab.training.memory.room import DEFAULT_LIMIT
from lora_lab.training.packed.model import PackedModel

CODE = {"path": "builtin/stdlib-code"}
STUDY = StudySpec.model_validate(
    {
        "study_name": "tight",
        "model": {"model_name_or_path": "builtin/tiny-llama", "dtype": "float64"},
        "data": {"train": CODE | {"max_examples": 12}, "eval": CODE | {"max_examples": 4}, "max_length": 32},
        "training": {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-3},
        "lora": {"target_modules": "attention", "lora_dropout": 0.1},
        "sweep": {
            "sampler": "grid",
            "pruner": "none",
            "pack_size": 4,
            "parameters": {"r": {"values": [2, 4, 8, 16]}, "learning_rate": {"values": [1e-3, 3e-3]}},
        },
    }
)
SEEDS = range(4)


class TightDevice:
    """From some step on, no more than so many trials fit into a forward pass; before that, all do."""

    def __init__(self, *, from_call: int, trials: int) -> None:
        self.from_call, self.trials = from_call, trials
        self.calls = self.failures = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = PackedModel.nll

        def nll(model, layout):
            if torch.is_grad_enabled():
                self.calls += 1
                if self.calls >= self.from_call and len(layout.row_counts) > self.trials:
                    self.failures += 1
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return real(model, layout)

        monkeypatch.setattr(PackedModel, "nll", nll)


def results(folder: RunFolder) -> dict:
    """What every trial came to, by its configuration."""
    end = run_study(
        STUDY,
        folder,
        "test",
        RunOptions(memory_limit=DEFAULT_LIMIT, tracking_uri=f"sqlite:///{folder.root.parent / 'mlflow.db'}"),
        display=Display(PlainView(io.StringIO())),
        stop=StopRequest(),
    )
    assert end.complete
    with open_store(STUDY, storage_url(STUDY, folder), create=False) as store:
        return {(one.config.lora.r, one.config.training.learning_rate): one for one in store.results()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return results(RunFolder(tmp_path_factory.mktemp("undisturbed") / "tight"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_memory_that_runs_out_at_any_step_changes_no_result(tmp_path, monkeypatch, undisturbed, seed):
    chance = random.Random(seed)
    device = TightDevice(from_call=chance.randint(2, 16), trials=chance.randint(1, 3))
    device.install(monkeypatch)
    found = results(RunFolder(tmp_path / "tight"))
    assert device.failures, "memory did run out"
    assert found.keys() == undisturbed.keys()
    for key, expected in undisturbed.items():
        assert found[key].state == expected.state == "complete"
        assert found[key].curve == pytest.approx(expected.curve, abs=1e-9)
        assert found[key].metrics["steps"] == expected.metrics["steps"]
        assert found[key].metrics["peak_memory_bytes"] == expected.metrics["peak_memory_bytes"]
