"""Rows without what a metric compares with are refused by file and line, before a base is loaded."""

from __future__ import annotations

import json
from importlib import metadata
from typing import TYPE_CHECKING

import pytest

from lora_lab.common.errors import InputError
from lora_lab.planning.answer_checks import check_answers
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import EvaluationSettings, ModelSettings
from lora_lab.study.spec import StudySpec
from lora_lab.study.sweep import Parameter, SweepSettings

if TYPE_CHECKING:
    from pathlib import Path

TEXT = {"text": "a b"}
ANSWERED = {"prompt": "a", "completion": "b"}
CHOSEN = {"question": "a", "choices": ["b", "c"], "answer": 1}


def check(folder: Path, metrics: tuple[str, ...], *rows: dict[str, object]) -> None:
    for name in ("train", "asked"):
        lines = [json.dumps({**row, "id": f"{name}{index}"}) for index, row in enumerate(rows * 3)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    spec = StudySpec(
        study_name="checked",
        model=ModelSettings(model_name_or_path="no-such-base"),
        data=DataSettings(
            train={"path": str(folder / "train.jsonl")},
            eval={"path": str(folder / "asked.jsonl")},
        ),
        evaluation=EvaluationSettings(metrics=metrics),
        sweep=SweepSettings(sampler="grid", parameters={"r": Parameter(values=(1, 2))}),
    )
    check_answers(spec, folder / "cache")


@pytest.mark.parametrize(("name", "package"), [("rougeL", "rouge-score"), ("bleu", "sacrebleu")])
def test_a_missing_package_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    check(tmp_path, (name,), ANSWERED)

    def gone(asked: str) -> None:
        raise metadata.PackageNotFoundError(asked)

    monkeypatch.setattr(metadata, "distribution", gone)
    check(tmp_path, ("exact_match",), ANSWERED)
    said = rf"{name} is computed by {package}, which is not installed; pip install 'lora-lab\[metrics\]'"
    with pytest.raises(InputError, match=said):
        check(tmp_path, (name,), ANSWERED)


@pytest.mark.parametrize(
    ("metrics", "row"),
    [
        (("perplexity", "token_accuracy"), TEXT),
        (("exact_match",), ANSWERED),
        (("accuracy", "accuracy_norm", "exact_match"), CHOSEN),
    ],
)
def test_rows_that_have_it_pass(tmp_path: Path, metrics: tuple[str, ...], row: dict[str, object]) -> None:
    check(tmp_path, metrics, row)


@pytest.mark.parametrize(
    ("metrics", "row", "said"),
    [
        (("f1",), TEXT, "f1 compares answers with references, but {}:1 is a text without an answer; give data.eval"),
        (("accuracy",), ANSWERED, "accuracy finds the likeliest of several choices, but {}:1 has none; give data.eval"),
        (
            ("exact_match", "accuracy_norm"),
            ANSWERED,
            "evaluation.metrics: accuracy_norm finds the likeliest of several choices, but {}:1",
        ),
        (("accuracy",), CHOSEN | {"choices": ["b"]}, "{}:1: choices: must be 2 or more to choose among"),
        (("accuracy",), CHOSEN | {"answer": "D"}, "{}:1: answer: 'D' is none of the 2 choices"),
    ],
)
def test_rows_that_lack_it_are_refused(
    tmp_path: Path, metrics: tuple[str, ...], row: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        check(tmp_path, metrics, row)
    places = [said.format(tmp_path / f"{name}.jsonl") for name in ("asked", "train")]
    assert any(place in str(caught.value) for place in places)
