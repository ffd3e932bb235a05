"""Columns of scores: who shares a base, what they are called in the journal and on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.simulated import BASE_LOSS, trial
from rich.console import Console

from lora_lab.analysis.verdict import decide
from lora_lab.harness.columns import columns_by_base
from lora_lab.harness.records import records_of
from lora_lab.results.folder import RunFolder
from lora_lab.study.task_scores import TaskScore, TaskScores, column_order
from lora_lab.terminal.task_table import print_task_scores

if TYPE_CHECKING:
    from pathlib import Path

SCORES = [
    TaskScores(
        task="mmlu",
        settings={},
        higher_is_better={"acc": True},
        columns={
            "base": {"acc": TaskScore(0.25, 0.01)},
            "0": {"acc": TaskScore(0.5, 0.02)},
            "12": {"acc": TaskScore(0.4, 0.02)},
        },
    ),
    TaskScores(
        task="wikitext",
        settings={},
        higher_is_better={"bits_per_byte": False},
        columns={"base": {"bits_per_byte": TaskScore(1.5, None)}, "0": {"bits_per_byte": TaskScore(1.25, None)}},
    ),
]


def test_trials_of_one_base_are_beside_it(tmp_path: Path) -> None:
    [columns] = columns_by_base([trial(3, 4.0), trial(0, 4.1)], RunFolder(tmp_path)).values()
    assert [column.name for column in columns] == ["base", "3", "0"]
    assert columns[0].adapter is None
    assert columns[1].adapter == RunFolder(tmp_path).files_of(3).adapter


def test_several_bases_are_told_apart_and_stand_before_the_trials(tmp_path: Path) -> None:
    trials = [trial(3, 4.0), trial(1, 4.1, quantization="nf4"), trial(2, 4.2, quantization="nf4")]
    found = columns_by_base(trials, RunFolder(tmp_path))
    assert [[column.name for column in columns] for columns in found.values()] == [
        ["base (auto)", "3"],
        ["base (nf4, auto)", "1", "2"],
    ]
    assert sorted(["10", "base (nf4, auto)", "3"], key=column_order) == ["base (nf4, auto)", "3", "10"]


def test_scores_are_journaled_at_the_trials_that_were_measured_and_the_bases_at_the_study() -> None:
    base, first = records_of(SCORES, {"0"})
    assert (base.number, base.metrics) == (
        None,
        {"base/mmlu/acc": 0.25, "base/mmlu/acc_stderr": 0.01, "base/wikitext/bits_per_byte": 1.5},
    )
    assert (first.number, first.metrics) == (
        0,
        {"mmlu/acc": 0.5, "mmlu/acc_stderr": 0.02, "wikitext/bits_per_byte": 1.25},
    )


def test_the_table_has_a_column_for_each_and_says_what_is_better() -> None:
    findings = decide([trial(0, 4.0), trial(12, 4.5, r=4)], BASE_LOSS, 0.01)
    console = Console(record=True, width=200)
    print_task_scores(SCORES, findings, console)
    assert [line.split() for line in console.export_text().splitlines()] == [
        ["trial", "0"],
        ["task", "metric", "base", "best,", "recommended", "trial", "12"],
        ["mmlu", "acc", *["0.2500", "±", "0.0100"], *["0.5000", "±", "0.0200"], *["0.4000", "±", "0.0200"]],
        ["wikitext", "bits_per_byte", "(lower", "is", "better)", "1.5000", "1.2500"],
    ]
