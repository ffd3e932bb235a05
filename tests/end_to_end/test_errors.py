"""A mistake is a one-line message with a way out, told before anything is trained."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from sweep_process import EVAL, PARAMETERS, Ended, study

import lora_lab.builtin

MODEL = Path(lora_lab.builtin.__file__).parent / "tiny-llama"
DISK_BYTES = 24 << 20
"""Room for a small study and twice its report, which holds plotly whole."""


def refused(ended: Ended, code: int, *texts: str) -> None:
    """It ended with `code` and one line of error that has all `texts`; nothing was trained."""
    assert ended.code == code, ended
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    for text in texts:
        assert text in lines[0]
    assert "trial 0 started" not in ended.out


def test_unknown_key(lab):
    lab.write(study(training={"learning_rat": 1e-3}))
    refused(lab.sweep(), 2, "study.yaml:", "training.learning_rat", "did you mean learning_rate?")


def test_wrong_type(lab):
    lab.write(study(training={"num_train_epochs": "many"}))
    refused(lab.sweep(), 2, "study.yaml:", "training.num_train_epochs", "'many'")


def test_no_yaml(lab):
    (lab.folder / "study.yaml").write_text("study_name: [\n")
    refused(lab.sweep(), 2, "study.yaml:2", "not valid YAML")


def test_no_study_file(lab):
    refused(lab.sweep(), 2, "study.yaml")


def test_no_sweep_file(lab):
    lab.write(study() | {"sweep": "../sweeps/none.yaml"})
    refused(lab.sweep(), 2, "study.yaml:", "sweep", "none.yaml")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "a/b", "-rf", "a\nb", "x" * 300, ""])
def test_study_names_that_are_no_folder_names(lab, name):
    lab.write(study(name))
    refused(lab.sweep(), 2, "study.yaml:", "study_name")
    assert not (lab.folder / "runs").exists()


@pytest.mark.parametrize(
    ("override", "texts"),
    [
        ("training.nothing=1", ["training.nothing"]),
        ("training.learning_rate", ["training.learning_rate"]),
        ("training.seed=-1", ["--set", "training.seed"]),
        ("training.learning_rate=1", ["sweep.parameters.learning_rate"]),
    ],
)
def test_set_arguments(lab, override, texts):
    lab.write(study())
    refused(lab.sweep("--set", override), 2, *texts)


def test_model_folder_that_is_not_there(lab):
    lab.write(study(model={"model_name_or_path": "./nowhere"}))
    refused(lab.sweep(), 2, "model.model_name_or_path", "./nowhere", "config.json")


def test_unknown_builtin_model(lab):
    lab.write(study(model={"model_name_or_path": "builtin/huge"}))
    refused(lab.sweep(), 2, "builtin/huge", "builtin/tiny-llama")


def test_hub_model_that_cannot_be_reached(lab):
    lab.write(study(model={"model_name_or_path": "nobody/nothing"}))
    refused(lab.sweep(), 2, "model.model_name_or_path", "nobody/nothing")


@pytest.mark.parametrize("pickle", [None, "pytorch_model.bin"])
def test_model_folder_without_safetensors(lab, pickle):
    folder = lab.folder / "other"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if pickle:
        (folder / pickle).write_bytes(b"\x80\x04.")
    lab.write(study(model={"model_name_or_path": "./other"}))
    refused(lab.sweep(), 2, "model.model_name_or_path", pickle or "no weights", "save_pretrained")


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_model_folder_with_damaged_safetensors(lab, damage):
    folder = lab.folder / "other"
    shutil.copytree(MODEL, folder)
    weights = next(folder.glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2] if damage == "cut" else b"nonsense" * 100)
    lab.write(study(model={"model_name_or_path": "./other"}))
    refused(lab.sweep(), 2, "model.model_name_or_path", "other")


def rows(lab, *lines: str) -> None:
    (lab.folder / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    lab.write(study(data={"train": "rows.jsonl", "eval": EVAL}))


def test_row_without_its_field(lab):
    rows(lab, json.dumps({"text": "def first(): pass"}), json.dumps({"label": 1}))
    refused(lab.sweep(), 2, "rows.jsonl:2", "text")


def test_row_that_is_no_json(lab):
    rows(lab, json.dumps({"text": "def first(): pass"}), "{")
    refused(lab.sweep(), 2, "rows.jsonl:2")


def test_empty_dataset(lab):
    rows(lab)
    refused(lab.sweep(), 2, "rows.jsonl", "no rows")


def test_missing_dataset(lab):
    lab.write(study(data={"train": "missing.jsonl"}))
    refused(lab.sweep(), 2, "missing.jsonl")


@pytest.mark.parametrize("targets", [["no_such_proj"], "no_such_.*"])
def test_target_modules_that_match_nothing(lab, targets):
    lab.write(study(lora={"target_modules": targets}))
    refused(lab.sweep(), 2, "target_modules", "no_such_")


def test_searched_target_modules_of_which_one_matches_nothing(lab):
    lab.write(study(sweep={"parameters": PARAMETERS | {"target_modules": {"values": ["attention", "nothing"]}}}))
    refused(lab.sweep(), 2, "target_modules", "nothing")


def test_layers_that_the_model_does_not_have(lab):
    lab.write(study(lora={"layers": [99]}))
    refused(lab.sweep(), 2, "99")


def test_a_file_where_the_run_folder_should_be(lab):
    lab.write(study())
    (lab.folder / "runs").write_text("")
    refused(lab.sweep(), 1, "runs/tiny", "cannot be written")


def test_storage_that_cannot_be_opened(lab):
    lab.write(study(storage="sqlite:////proc/nowhere/study.db"))
    refused(lab.sweep(), 1, "/proc/nowhere/study.db")


def test_storage_url_that_is_none(lab):
    lab.write(study(storage="what:ever"))
    refused(lab.sweep(), 2, "what:ever")


def test_a_file_that_is_no_database(lab):
    lab.write(study())
    lab.run_folder().mkdir(parents=True)
    (lab.run_folder() / "study.db").write_bytes(b"no database at all" * 100)
    refused(lab.sweep(), 1, "study.db", "not a database")


def test_report_before_the_first_sweep(lab):
    lab.write(study())
    refused(lab.report(), 1, "study.db", "lora_lab.sweep")


def test_a_second_coordinator_is_refused_and_a_dead_one_is_replaced(lab):
    lab.write(study(sweep={"n_trials": 4, "pruner": "none"}))
    first = lab.start("--checkpoint-interval", "0.1")
    first.wait_for("trial 0 started")
    for _ in range(2):
        refused(lab.sweep(), 1, "another coordinator works on runs/tiny", f"process {first.process.pid}", "--fresh")
    first.signal(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL
    third = lab.sweep()
    assert third.code == 0, third.err
    assert sorted(lab.results()) == list(range(4))


@pytest.fixture
def small_disk(lab):
    """The folder `runs` on a small disk of its own."""
    disk = lab.folder / "runs"
    disk.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs"]
    mounted = subprocess.run(["mount", *options, disk], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a disk can be mounted only by root: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_full_disk_at_the_start(lab, small_disk):
    (small_disk / "filler").write_bytes(bytes(DISK_BYTES))
    lab.write(study())
    refused(lab.sweep(), 1, "runs/tiny", "No space left")


@pytest.mark.parametrize(
    "free_kb",
    [
        pytest.param(100, marks=pytest.mark.slow),
        *(pytest.param(kb, marks=pytest.mark.faults) for kb in (66, 80, 120, 150, 180)),
    ],
)
def test_disk_that_is_full_soon(lab, small_disk, free_kb):
    """Whichever file meets the end of the disk: one line, and once there is space, the same command goes on."""
    lab.write(study(storage=f"sqlite:///{lab.folder / 'study.db'}"))
    full_then_free(lab, small_disk, free_kb)


@pytest.mark.faults
@pytest.mark.parametrize("free_kb", [100, 200, 300, 400, 600])
def test_disk_of_the_database_that_is_full_soon(lab, small_disk, free_kb):
    """A full database is waited for, a minute long, before the sweep gives up."""
    lab.write(study())
    full_then_free(lab, small_disk, free_kb)


def full_then_free(lab, disk, free_kb):
    (disk / "filler").write_bytes(bytes(DISK_BYTES - (free_kb << 10)))
    ended = lab.sweep()
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert ended.err.splitlines()[-1].startswith("error: ")
    assert any(reason in ended.err for reason in ("No space left", "disk is full")), ended.err
    (disk / "filler").unlink()
    again = lab.sweep()
    assert again.code == 0, again.err
    assert sorted(lab.results()) == list(range(6))
