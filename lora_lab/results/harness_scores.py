"""What lm-evaluation-harness measured of a study, on disk: `evaluate/<task>.json` in its run folder."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from lora_lab.common.errors import CheckpointError
from lora_lab.common.files import write_durably
from lora_lab.study.task_scores import TaskScore, TaskScores

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.results.folder import RunFolder

UNSAFE = re.compile(r"[^\w.-]")


def keep_harness_scores(folder: RunFolder, scores: TaskScores) -> TaskScores:
    """Write a task's scores beside those of other trials that were measured with the same settings.

    Returns:
        What the file has now.

    Raises:
        StorageError: it cannot be written.
        CheckpointError: the scores that are there are damaged.
    """
    path = folder.evaluate / f"{UNSAFE.sub('_', scores.task)}.json"
    whole = scores.with_earlier(_read(path) if path.is_file() else None)
    contents = {
        "task": whole.task,
        "settings": whole.settings,
        "higher_is_better": whole.higher_is_better,
        "columns": {
            name: {metric: score._asdict() for metric, score in column.items()}
            for name, column in whole.columns.items()
        },
    }
    write_durably(path, json.dumps(contents, indent=2) + "\n")
    return whole


def read_harness_scores(folder: RunFolder) -> list[TaskScores]:
    """The scores of every task that was evaluated, by the task's name.

    Raises:
        CheckpointError: a file is damaged.
    """
    return [_read(path) for path in sorted(folder.evaluate.glob("*.json"))]


def _read(path: Path) -> TaskScores:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        columns = {
            name: {metric: TaskScore(**score) for metric, score in column.items()}
            for name, column in contents["columns"].items()
        }
        return TaskScores(
            task=contents["task"],
            settings=contents["settings"],
            higher_is_better=contents["higher_is_better"],
            columns=columns,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); remove it, and evaluate the task again") from error
