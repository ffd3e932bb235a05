"""Reading the adapters of a study for the report."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from analysis.simulated import study, trial
from safetensors.torch import save_file

from lora_lab.analysis.verdict import decide
from lora_lab.common.errors import CheckpointError
from lora_lab.results.folder import RunFolder
from lora_lab.results.gather import adapter_spectra, read_spectra
from lora_lab.results.results import Results

NAME = "base_model.model.model.layers.{}.mlp.up_proj.lora_{}.weight"


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path)


def write_adapter(folder, number, *, r=4, dtype=torch.float32, use_rslora=False, modules=2):
    adapter = folder.trial(number) / "adapter"
    adapter.mkdir(parents=True)
    generator = torch.Generator().manual_seed(number)
    weights = {}
    for module in range(modules):
        weights[NAME.format(module, "A")] = torch.randn(r, 12, generator=generator).to(dtype)
        weights[NAME.format(module, "B")] = torch.randn(9, r, generator=generator).to(dtype)
    save_file(weights, adapter / "adapter_model.safetensors")
    config = {"r": r, "lora_alpha": 8, "use_rslora": use_rslora}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter, weights


def results_of(trials):
    return Results(study(), trials, decide(trials, 5.0, 0.05), {}, [], {"eval_loss": 5.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_spectrum_is_that_of_the_update(folder, dtype, use_rslora):
    adapter, weights = write_adapter(folder, 0, dtype=dtype, use_rslora=use_rslora)
    first = read_spectra(adapter)[NAME.format(0, "A")]
    scaling = 8 / (2 if use_rslora else 4)
    update = scaling * weights[NAME.format(0, "B")].double() @ weights[NAME.format(0, "A")].double()
    expected = torch.linalg.svdvals(update)[:4].numpy()
    np.testing.assert_allclose(first.singular_values, expected, rtol=1e-12)


def test_the_chosen_trials_come_first_and_what_was_dropped_is_left_out(folder):
    trials = [trial(0, 4.00, r=64), trial(1, 4.01, r=4), trial(2, 4.02, r=8), trial(3, 4.9, r=16)]
    for number in (0, 1, 3):
        write_adapter(folder, number)
    spectra = adapter_spectra(results_of(trials), folder)

    assert [(one.number, one.role) for one in spectra] == [(0, "best"), (1, "recommended")]
    assert spectra[0].summary.modules == 2
    assert spectra[0].label.startswith("r=64")


def test_a_trial_read_off_another_has_the_adapter_of_that_one(folder):
    trials = [trial(0, 4.00, state="shared", source=5), trial(5, 4.5, r=64)]
    write_adapter(folder, 5)

    assert [one.number for one in adapter_spectra(results_of(trials), folder)] == [0]


def test_dora_is_left_out(folder):
    write_adapter(folder, 0)
    assert adapter_spectra(results_of([trial(0, 4.0, use_dora=True)]), folder) == []


@pytest.mark.parametrize("damage", ["weights", "config", "shapes", "infinite"])
def test_a_damaged_adapter_is_named_with_a_way_out(folder, damage):
    adapter, weights = write_adapter(folder, 0)
    if damage == "weights":
        (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    elif damage == "config":
        (adapter / "adapter_config.json").write_text("{")
    else:
        bad = torch.ones(9, 5) if damage == "shapes" else torch.full((9, 4), torch.inf)
        save_file({**weights, NAME.format(0, "B"): bad}, adapter / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter .*0000/adapter cannot be read .*remove that folder"):
        adapter_spectra(results_of([trial(0, 4.0)]), folder)
