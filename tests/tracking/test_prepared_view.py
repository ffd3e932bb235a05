"""The view in which MLflow's page of a study opens."""

from __future__ import annotations

import base64
import json
import shutil
import zlib

import pytest

from lora_lab.study.measures import MEASURES
from lora_lab.tracking.asking import study_pages, why_silent
from lora_lab.tracking.journal import Journal
from lora_lab.tracking.mirror import MlflowMirror
from lora_lab.tracking.prepared_view import TAG, TRIALS, page_path, view_state, view_tag
from lora_lab.tracking.records import StudyStarted, TrialStarted

MOST = 5000
"""Characters that MLflow keeps of an experiment's tag."""


@pytest.mark.parametrize("name", ["eval_loss", "exact_match"])
def test_the_tag_is_the_view_as_mlflow_packs_it(name):
    searched = ["r", "alpha_ratio", "target_modules", "learning_rate", "lora_dropout", "use_rslora"]
    text = view_tag(MEASURES[name], searched, 1234)
    assert len(text) < MOST / 2
    envelope = json.loads(text)
    packed = envelope.pop("state").removeprefix("deflate;")
    assert envelope == {"name": "lora_lab: trials and trade-offs", "createdAt": 1234, "updatedAt": 1234}
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert state == view_state(MEASURES[name], searched)
    assert state["orderByKey"] == f"metrics.`{name}`"
    assert state["orderByAsc"] is (name == "eval_loss")
    assert {f"params.`{one}`" for one in searched} < set(state["selectedColumns"])
    assert len(set(state["selectedColumns"])) == len(state["selectedColumns"])


def test_the_mirror_prepares_the_page_and_leaves_what_somebody_changed(tmp_path, migrated_database):
    from mlflow import MlflowClient

    folder = tmp_path / "study"
    folder.mkdir()
    uri = f"sqlite:///{shutil.copy(migrated_database, tmp_path / 'mlflow.db')}"
    with Journal(folder) as journal:
        journal.append(StudyStarted(judged="exact_match", searched=("r",)), TrialStarted(number=0, name="trial-0000"))
    mirror = MlflowMirror(folder, uri)
    mirror.start()
    assert mirror.close(60) is None
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("study")
    assert json.loads(experiment.tags[TAG])["name"]
    runs = client.search_runs([experiment.experiment_id], TRIALS)
    assert [run.info.run_name for run in runs] == ["trial-0000"], "the view shows trials, and not the study's own run"

    client.set_experiment_tag(experiment.experiment_id, TAG, "changed")
    assert study_pages(uri, "study", MEASURES["eval_loss"], ["r"]) == (
        page_path(experiment.experiment_id),
        page_path(experiment.experiment_id, charts=True),
    )
    assert client.get_experiment_by_name("study").tags[TAG] == "changed"
    assert study_pages(uri, "another", MEASURES["eval_loss"], ["r"]) is None
    assert why_silent(uri) is None


def test_a_study_of_before_gets_its_view(tmp_path, migrated_database):
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(migrated_database, tmp_path / 'mlflow.db')}"
    client = MlflowClient(uri)
    number = client.create_experiment("old")
    assert study_pages(uri, "old", MEASURES["eval_loss"], ["r"]) is not None
    assert TAG in client.get_experiment(number).tags
