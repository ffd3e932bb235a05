"""What a study of classes may hold, and that a study of text is written as it was before there were any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_lab.common.errors import StudyFileError
from lora_lab.study.data_settings import ColumnNames
from lora_lab.study.engines import engine_for
from lora_lab.study.file.loading import load_study
from lora_lab.study.settings import ModelSettings

if TYPE_CHECKING:
    from pathlib import Path

STUDY = """\
study_name: classes
model: {model_name_or_path: base, task_type: SEQ_CLS}
data: {train: rows.jsonl, packing: false}
lora: {r: 4}
evaluation: {metrics: [accuracy]}
sweep: {metric: accuracy, sampler: grid, pruner: none, parameters: {learning_rate: {values: [1.0e-3, 1.0e-4]}}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.yaml"


def test_a_study_of_classes_trains_on_the_reference_engine(path: Path) -> None:
    path.write_text(STUDY)
    spec = load_study(path)
    choice = engine_for(spec.trial_config({}))
    assert choice == ("reference", "task_type SEQ_CLS trains a classification head in full")
    assert spec.sweep.judged.name == "accuracy"


def test_what_was_stored_before_there_were_tasks_keeps_its_identity() -> None:
    assert not {"task_type", "labels"} & ModelSettings(model_name_or_path="base").model_dump().keys()
    assert not {"text_pair", "label", "choices", "answer"} & ColumnNames(text="body").model_dump().keys()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("packing: false", "packing: true", "3: data.packing: a class is that of a whole row"),
        ("packing: false", "forgetting: general.jsonl", "3: data.forgetting: is measured by predicting text"),
        ("r: 4", "target_modules: all-linear+head", "4: lora.target_modules: model.task_type SEQ_CLS trains the head"),
        (
            "[accuracy]",
            "[accuracy, f1]",
            "5: evaluation.metrics: f1 is no metric of model.task_type SEQ_CLS; that has ",
        ),
        (
            "packing: false",
            "columns: {prompt: q}",
            "3: data.columns.prompt: is no column that model.task_type SEQ_CLS reads",
        ),
        ("SEQ_CLS}", "SEQ_CLS, labels: [a]}", "2: model.labels: must be two classes or more that differ, but are a"),
        ("SEQ_CLS}", "SEQ_CLS, labels: [a, a]}", "2: model.labels: must be two classes or more that differ"),
        ("task_type: SEQ_CLS", "labels: [a, b]", "2: model.labels: needs task_type SEQ_CLS, but that is CAUSAL_LM"),
        ("SEQ_CLS", "SEQ_CLF", "2: model.task_type: must be one of CAUSAL_LM, SEQ_CLS, but is 'SEQ_CLF'"),
        (
            "learning_rate: {values: [1.0e-3, 1.0e-4]}",
            "packing: {values: [true, false]}",
            "6: sweep.parameters.packing: no trial can have packing=true: a class is that of a whole row",
        ),
    ],
)
def test_what_is_of_text_is_refused_by_line_and_key(path: Path, old: str, new: str, said: str) -> None:
    assert old in STUDY
    path.write_text(STUDY.replace(old, new))
    with pytest.raises(StudyFileError) as refused:
        load_study(path)
    assert f"study.yaml:{said}" in str(refused.value)
