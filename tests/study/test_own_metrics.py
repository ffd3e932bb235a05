"""Metrics of one's own: what a file may declare, how a study names them, and that their content is part of it."""

from __future__ import annotations

import hashlib
import inspect
from typing import TYPE_CHECKING

import pytest

from lora_lab.__main__ import app
from lora_lab.command_line import run_own_metrics
from lora_lab.common.errors import InputError, StudyFileError
from lora_lab.study.file.loading import load_spec_json, load_study
from lora_lab.study.measures import MEASURES, metrics, objectives
from lora_lab.study.own_metrics import OWN_METRICS, MetricError, add_own_metrics
from lora_lab.study.resume import compare_for_resume

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE = """
from math import inf

def shares_a_letter(prediction, reference, row):
    return bool(set(prediction) & set(reference)) * row["weight"]

def edits(prediction, reference, row):
    return abs(len(prediction) - len(reference))

edits.goal = "minimize"
edits.range = (0, inf)

def _helper(): ...
"""
STUDY = """
study_name: own
model: {model_name_or_path: builtin/tiny-llama}
data: {train: builtin/facts}
evaluation: {metrics: [exact_match, edits]}
sweep: {metric: edits, sampler: grid, pruner: none, parameters: {r: {values: [1, 2]}}}
"""


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """What a test adds to the tables goes with it."""
    measures, own = dict(MEASURES), dict(OWN_METRICS)
    yield
    for table, before in ((MEASURES, measures), (OWN_METRICS, own)):
        table.clear()
        table.update(before)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "my_metrics.py"
    path.write_text(FILE)
    return path


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text(STUDY)
    return path


def test_functions_become_measures_with_their_goal_and_range(file: Path) -> None:
    add_own_metrics(file)
    assert {"shares_a_letter", "edits"} <= set(metrics()) & set(objectives())
    assert "_helper" not in MEASURES
    assert [MEASURES[name].goal for name in ("shares_a_letter", "edits")] == ["maximize", "minimize"]
    assert [MEASURES["edits"].can_be(value) for value in (0.0, 9.0, -1.0, float("nan"))] == [True, True, False, False]
    assert MEASURES["test_edits"].on_test
    assert "test_edits" not in objectives()


def test_scores_are_what_the_function_returns_of_answer_reference_and_row(file: Path) -> None:
    add_own_metrics(file)
    assert OWN_METRICS["shares_a_letter"].score("r:1", "abc", "cd", {"weight": 0.5}) == 0.5
    assert OWN_METRICS["edits"].score("r:1", "abc", "c", {}) == 2.0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("row['missing']", "raised KeyError: 'missing'"),
        ("float('nan')", "is nan, but must be a finite number from 0 to 1"),
        ("1.5", "is 1.5, but must be a finite number from 0 to 1"),
        ("None", "raised TypeError"),
    ],
)
def test_a_failure_names_file_function_row_and_reason(tmp_path: Path, body: str, said: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(f"def mine(prediction, reference, row):\n    return {body}\n\nmine.range = (0, 1)\n")
    add_own_metrics(path)
    with pytest.raises(MetricError) as caught:
        OWN_METRICS["mine"].score("rows.jsonl:7", "a", "b", {})
    assert str(caught.value).startswith(f"{path}: mine of rows.jsonl:7 {said}")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero; mend the file"),
        ("x = 1", "has no function; write one"),
        ("def f1(p, r, row): ...", "f1 is the name of a measure that lora_lab has"),
        ("def Mine(p, r, row): ...", "Mine is no name for a metric"),
        ("def mine(p, r): ...", "mine takes (p, r); it must take (prediction, reference, row)"),
        (
            "def mine(p, r, row): ...\nmine.goal = 'max'",
            "mine has the goal 'max'; it must be one of minimize, maximize",
        ),
        ("def mine(p, r, row): ...\nmine.range = (1, 0)", "mine has the range (1, 0); it must be two numbers"),
        ("def mine(p, r, row): ...\nmine.range = 1", "mine has the range 1; it must be two numbers"),
    ],
)
def test_what_is_no_metric_is_refused_by_file_and_name(tmp_path: Path, source: str, said: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(InputError) as caught:
        add_own_metrics(path)
    assert str(caught.value).startswith(f"--metrics {path}: {said}")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.py: cannot be read \(No such file or directory\); correct the path"):
        add_own_metrics(tmp_path / "none.py")


def test_a_study_is_of_the_content_of_the_file(file: Path, study: Path) -> None:
    with pytest.raises(StudyFileError, match=r"evaluation\.metrics\[1\]: must be one of perplexity"):
        load_study(study)
    add_own_metrics(file)
    spec = load_study(study)
    assert spec.sweep.judged.name == "edits"
    [declared] = spec.evaluation.own_metrics
    assert (declared.name, declared.digest) == ("edits", hashlib.sha256(FILE.encode()).hexdigest())
    assert spec.trial_config({"r": 1}).evaluation.own_metrics == (declared,)
    compare_for_resume(spec, load_study(study))

    file.write_text(FILE + "# changed")
    add_own_metrics(file)
    with pytest.raises(InputError, match="--metrics: the file has another content than when these trials were"):
        compare_for_resume(spec, load_study(study))


def test_a_stored_study_is_read_without_the_file(file: Path, study: Path) -> None:
    add_own_metrics(file)
    stored = load_study(study).stored()
    for name in ("edits", "test_edits"):
        del MEASURES[name]
    OWN_METRICS.clear()
    assert load_spec_json(stored).sweep.judged.goal == "minimize"
    assert MEASURES["edits"].low == 0
    assert "own_metrics" not in load_study(study, ["evaluation=null", "sweep.metric=eval_loss"]).stored()


def test_every_command_that_reads_a_study_file_takes_the_file_of_its_metrics(file: Path) -> None:
    reading = {
        command.name: set(inspect.signature(command.callback).parameters)
        for command in app.registered_commands
        if "overrides" in inspect.signature(command.callback).parameters
    }
    assert {"sweep", "plan", "report", "show"} <= reading.keys()
    assert [name for name, parameters in reading.items() if "metrics" not in parameters] == []
    assert run_own_metrics(None) == []
    assert run_own_metrics(file) == ["--metrics", str(file)]
    assert "edits" in OWN_METRICS


def test_a_study_file_declares_none_and_so_runs_no_code(study: Path) -> None:
    study.write_text(STUDY.replace("[exact_match, edits]", "[exact_match], own_metrics: [{name: edits}]"))
    with pytest.raises(StudyFileError, match=r"own.yaml:5: evaluation.own_metrics: is known from --metrics"):
        load_study(study)
    assert "edits" not in MEASURES
