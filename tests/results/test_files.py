"""What the runner does with the run folder: its names, and the chosen adapters."""

from __future__ import annotations

import pytest
import yaml
from runner.scripted import spec

from lora_lab.common.errors import StorageError
from lora_lab.results.choice import write_choice
from lora_lab.results.folder import RunFolder, unused_name
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult


def test_the_first_unused_name(tmp_path):
    assert unused_name("a", tmp_path) == "a"
    for name in ("a", "a-2", "a-4"):
        (tmp_path / name).mkdir()
    assert unused_name("a", tmp_path) == "a-3"


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError, match=r"runs/a cannot be written.*fix its permissions"):
        RunFolder.of("a", tmp_path / "runs").make()


def test_making_a_run_folder_leaves_nothing_in_it(tmp_path):
    folder = RunFolder.of("a", tmp_path)
    folder.make()
    folder.make()
    assert list(folder.root.iterdir()) == []


@pytest.fixture
def result():
    config = spec().trial_config({"r": 4, "learning_rate": 1e-3})
    engine = engine_for(config)
    return TrialResult(number=7, state="complete", params={}, config=config, engine=engine, metrics={"eval_loss": 2.5})


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "trials/0007/adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    return folder


def test_a_choice_replaces_the_one_before_whole(tmp_path, result, adapter):
    best = tmp_path / "best"
    (best / "adapter").mkdir(parents=True)
    (best / "adapter" / "left_over.bin").write_bytes(b"")
    write_choice(best, result, adapter)
    assert sorted(path.name for path in (best / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert (best / "adapter_config.json").read_text() == "{}"
    assert not list(tmp_path.glob(".*"))


def test_a_choice_whose_adapter_was_dropped_never_keeps_another_trial_s(tmp_path, result, adapter):
    write_choice(tmp_path / "recommended", result, adapter)
    write_choice(tmp_path / "recommended", result, None)
    assert [path.name for path in (tmp_path / "recommended").iterdir()] == ["config.yaml"]


def test_the_configuration_says_what_was_measured_and_trained(tmp_path, result, adapter):
    write_choice(tmp_path / "best", result, adapter)
    text = (tmp_path / "best" / "config.yaml").read_text()
    assert text.startswith("# Trial 7;")
    assert '"eval_loss": 2.5' in text
    sections = yaml.safe_load(text)
    assert (sections["lora"]["r"], sections["lora"]["lora_alpha"]) == (4, 8.0)
    assert "alpha_ratio" not in sections["lora"]
