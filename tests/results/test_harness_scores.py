"""Scores of lm-evaluation-harness on disk: kept beside earlier ones that were measured in the same way."""

from __future__ import annotations

import pytest

from lora_lab.common.errors import CheckpointError
from lora_lab.results.folder import RunFolder
from lora_lab.results.harness_scores import keep_harness_scores, read_harness_scores
from lora_lab.study.task_scores import TaskScore, TaskScores, column_order


def scores(settings=None, task="mmlu", **columns) -> TaskScores:
    return TaskScores(
        task=task,
        settings={"limit": None} if settings is None else settings,
        higher_is_better={"acc": True},
        columns={name.lstrip("_"): {"acc": TaskScore(value, 0.01)} for name, value in columns.items()},
    )


def test_columns_of_the_same_settings_come_together(tmp_path):
    folder = RunFolder(tmp_path)
    keep_harness_scores(folder, scores(base=0.3, _3=0.5))
    kept = keep_harness_scores(folder, scores(base=0.3, _7=0.6))
    keep_harness_scores(folder, scores(task="a/b", base=0.1))
    assert sorted(kept.columns, key=column_order) == ["base", "3", "7"]
    other, read = read_harness_scores(folder)
    assert (read, other.task) == (kept, "a/b")
    assert [path.name for path in sorted(folder.evaluate.iterdir())] == ["a_b.json", "mmlu.json"]


def test_other_settings_replace_them(tmp_path):
    folder = RunFolder(tmp_path)
    keep_harness_scores(folder, scores(_3=0.5))
    kept = keep_harness_scores(folder, scores({"limit": 10}, _7=0.6))
    assert list(kept.columns) == ["7"]
    assert read_harness_scores(folder) == [kept]


def test_a_damaged_file_is_named(tmp_path):
    folder = RunFolder(tmp_path)
    keep_harness_scores(folder, scores(_3=0.5))
    (folder.evaluate / "mmlu.json").write_text('{"task": 3}')
    with pytest.raises(CheckpointError, match=r"mmlu\.json cannot be read .*remove it, and evaluate"):
        read_harness_scores(folder)
