"""Answers side by side: those first on which the finalists differ."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from analysis.simulated import trial

from lora_lab.analysis.metric_values import finalists
from lora_lab.analysis.verdict import decide
from lora_lab.common.errors import CheckpointError
from lora_lab.results.answers import read_answers
from lora_lab.results.folder import RunFolder
from lora_lab.study.measures import EXACT_MATCH
from lora_lab.study.trial_folder import TrialFolder

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.results.answers import Row
    from lora_lab.study.results import TrialResult

TRIALS = [trial(n, 4.0, r=n + 1, curve={1: 4.5, 2: 4.0}, metrics={"exact_match": 0.9 - n / 10}) for n in range(2)]


def write(path: Path, answers: list[str]) -> None:
    rows: list[Row] = [
        {"place": f"rows:{n}", "prompt": f"ask {n}", "reference": str(n), "prediction": text}
        for n, text in enumerate(answers)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read(folder: RunFolder, trials: list[TrialResult] = TRIALS):
    findings = decide(trials, 0.1, 0.01, EXACT_MATCH, absolute_margin=0.5)
    return read_answers(folder, trials, finalists(findings))


def test_those_that_differ_come_first(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder.files_of(0).predictions(2), ["a", "b", "c", *"xxxxxxxxxxxx"])
    write(folder.files_of(0).predictions(1), ["old"])
    write(folder.files_of(1).predictions(2), ["a", "B", "c", *"xxxxxxxxxxxx"])
    write(TrialFolder.of_base(folder.trials).predictions(0), [" a ", "b", "q", *"xxxxxxxxxxxx"])
    found = read(folder)
    assert found is not None
    assert [row.prompt for row in found.rows[:3]] == ["ask 1", "ask 2", "ask 0"]
    assert [(row.base, dict(row.answers)) for row in found.rows[:2]] == [
        ("b", {0: "b", 1: "B"}),
        ("q", {0: "c", 1: "c"}),
    ]
    assert (len(found.rows), found.total, found.differing, found.has_base) == (12, 15, 2, True)
    assert list(found.labels) == [0, 1]


def test_answers_are_those_of_the_adapter_that_a_trial_left(tmp_path):
    folder = RunFolder(tmp_path)
    write(folder.files_of(0).predictions(1), ["best"])
    write(folder.files_of(0).predictions(2), ["last"])
    best = replace(TRIALS[0], metrics={**TRIALS[0].metrics, "best_evaluation": 1.0})
    found = read(folder, [best])
    assert found is not None
    assert dict(found.rows[0].answers) == {0: "best"}


def test_without_the_base_or_with_other_rows_there_are_fewer_columns(tmp_path):
    folder = RunFolder(tmp_path)
    assert read(folder) is None
    write(folder.files_of(0).predictions(2), ["a", "b"])
    write(folder.files_of(1).predictions(2), ["a", "b", "c"])
    found = read(folder)
    assert found is not None
    assert (list(found.labels), found.has_base, found.rows[0].base) == ([0], False, None)


def test_classes_of_rows_are_answers_too_and_damage_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    path = folder.files_of(0).predictions(2)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"place": "rows:1", "text": "good", "label": "yes", "prediction": "no"}) + "\n")
    found = read(folder)
    assert found is not None
    assert (found.rows[0].prompt, found.rows[0].reference, dict(found.rows[0].answers)) == ("good", "yes", {0: "no"})
    path.write_text("{")
    with pytest.raises(CheckpointError, match="remove the file"):
        read(folder)
