"""`lora-lab list` and `lora-lab show`: what lies under runs/, read without a training."""

from __future__ import annotations

import json
import os
import shutil
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from finished_study import BASE_LOSS, finished_study
from typer.testing import CliRunner

from lora_lab.__main__ import app
from lora_lab.results.folder import RunFolder
from lora_lab.results.storage import storage_url
from lora_lab.search.store import open_store
from lora_lab.study.file.loading import load_study


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with study `one`, made once."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        begin(finished_study("one"))
    return folder


@pytest.fixture
def one(made, tmp_path):
    """The file of study `one`, whose run folder lies here."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return Path("one.yaml")


def call(*arguments: object) -> tuple[int, str, str]:
    outcome = CliRunner().invoke(app, [*map(str, arguments)])
    return outcome.exit_code, outcome.stdout, outcome.stderr


def as_json(*arguments: object) -> dict:
    code, text, error = call(*arguments, "--json")
    assert code == 0, error
    return json.loads(text)


def set_status(name: str, **values: object) -> None:
    written = values.pop("written_at", datetime.now(UTC))
    status = {"state": "running", "pid": os.getpid(), "host": socket.gethostname(), "left_s": 90.0, **values}
    RunFolder.of(name).status.write_text(json.dumps(status | {"written_at": written.isoformat()}))


def complete(study) -> None:
    spec = load_study(study, [])
    with open_store(spec, storage_url(spec, RunFolder.of(spec.study_name)), create=False) as store:
        store.record.replace_spec(spec)
        store.record.mark_complete()


def begin(study) -> None:
    spec = load_study(study, [])
    with open_store(spec, storage_url(spec, RunFolder.of(spec.study_name)), create=False) as store:
        store.record.replace_spec(spec)


def test_nothing_here():
    assert call("list") == (0, "no studies under runs/ here; run `python -m lora_lab.sweep` with a study file\n", "")
    assert as_json("list") == {"studies": []}


def test_the_studies_here_and_how_far_they_are():
    for name in ("done", "stopped", "works"):
        begin(finished_study(name))
    complete(Path("done.yaml"))
    set_status("works")
    studies = {one["study_name"]: one for one in as_json("list")["studies"]}
    assert {name: one["state"] for name, one in studies.items()} == {
        "done": "complete",
        "stopped": "interrupted",
        "works": "running",
    }
    assert studies["done"]["done"] == studies["done"]["total_trials"] == 12
    shown = as_json("show", "done.yaml")["verdict"]
    assert studies["done"]["verdict"]["recommended"] == shown["recommended"] == shown["rows"][0]["trial"]
    code, text, _ = call("list")
    assert code == 0
    assert "running, 1 min 30 s left" in text
    assert "12/12" in text


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ({"pid": 2**22 - 1}, "interrupted"),  # no such process here
        ({"state": "ended"}, "interrupted"),
        ({"host": "elsewhere"}, "running"),
        ({"host": "elsewhere", "written_at": datetime.now(UTC) - timedelta(hours=1)}, "interrupted"),
    ],
)
@pytest.mark.usefixtures("one")
def test_a_study_runs_where_its_coordinator_lives(status, state):
    set_status("one", **status)
    [study] = as_json("list")["studies"]
    assert study["state"] == state


@pytest.mark.usefixtures("one")
def test_a_study_that_cannot_be_read_says_why_and_hides_no_other():
    broken = RunFolder.of("broken")
    broken.make()
    broken.database.write_bytes(b"no database")
    elsewhere = RunFolder.of("elsewhere")
    elsewhere.make()
    elsewhere.summary.write_text("# of a study in PostgreSQL")
    code, text, _ = call("list")
    assert code == 0
    assert "file is not a database" in text
    assert "elsewhere: its trials are in a database elsewhere; show it by its study file" in text
    assert {one["study_name"] for one in as_json("list")["studies"]} == {"one", "broken", "elsewhere"}


def test_a_study_by_its_file_and_by_its_name(one):
    by_file, by_name = as_json("show", one), as_json("show", "one")
    assert by_file == by_name
    assert by_file["base_values"] == {"eval_loss": BASE_LOSS}
    assert [trial["number"] for trial in by_file["trials"]] == list(range(12))
    best = by_file["verdict"]["best"]
    assert by_file["trials"][best]["params"] == {"r": 16, "learning_rate": 1e-3, "seed": 0}
    code, text, _ = call("show", "one")
    assert code == 0
    for words in ("Verdict", "16 ", "python -m lora_lab.show one --trial N"):
        assert words in text


@pytest.mark.usefixtures("one")
def test_one_trial_with_its_settings():
    values = as_json("show", "one", "--trial", 3)
    assert values["state"] == "complete"
    assert values["config"]["lora"]["r"] == values["params"]["r"]
    assert values["eval_loss_by_evaluation"] == {"1": values["metrics"]["eval_loss"]}
    code, text, _ = call("show", "one", "--trial", 3)
    assert code == 0
    for words in (
        "trial        3 of study one",
        "state        complete",
        "eval_loss by evaluation",
        "lora_alpha:",
        "no adapter",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("nowhere",), "STUDY: neither a file nor a study under runs/ is called nowhere; there are one"),
        (("nowhere.yaml",), "nowhere.yaml"),
        (("one", "--trial", 99), "--trial: study one has no trial 99; numbers are 0 to 11"),
        (("one", "--set", "lora.r=4"), "--set changes a study file; give that file instead of the study's name"),
    ],
)
@pytest.mark.usefixtures("one")
def test_what_cannot_be_shown_is_said_in_one_line(words, message):
    code, _, error = call("show", *words)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_a_study_that_never_began():
    finished_study("new")
    code, _, error = call("show", "new")
    assert code == 1
    assert "study new has not begun" in error
