"""Tasks of lm-evaluation-harness for several columns: each request is computed once, for all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.wording import plural
from lora_lab.common.activity import unwatched
from lora_lab.common.errors import InputError
from lora_lab.harness.columns import columns_by_base
from lora_lab.harness.tasks import Harness
from lora_lab.results.harness_scores import keep_harness_scores
from lora_lab.training.adapted_base import AdaptedBase, Trained
from lora_lab.training.base.loading import default_device, load_base
from lora_lab.training.device import memory_may_run_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.common.activity import Beat
    from lora_lab.harness.asked import Asked
    from lora_lab.harness.columns import Column
    from lora_lab.results.folder import RunFolder
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import ModelSettings
    from lora_lab.study.task_scores import TaskScores


def evaluate_trials(
    trials: Sequence[TrialResult], folder: RunFolder, asked: Asked, beat: Beat = unwatched
) -> list[TaskScores]:
    """Evaluate trials and their bare base, and keep the scores in the run folder.

    Args:
        trials: Their adapters have to be there.
        folder: The study's.
        asked: The tasks, and how they are asked.
        beat: Called before each batch.

    Returns:
        What the run folder has of these tasks now, with what was measured earlier in the same way.

    Raises:
        InputError: the harness is not installed, there is no such task, or the base does not fit or is no language
            model.
        StorageError: the scores cannot be written.
    """
    harness = Harness(asked)
    kept: dict[str, TaskScores] = {}
    for model, columns in columns_by_base(trials, folder).items():
        for scores in _of_base(model, columns, harness, asked, beat):
            kept[scores.task] = keep_harness_scores(folder, scores)
    return list(kept.values())


def _of_base(
    model: ModelSettings, columns: Sequence[Column], harness: Harness, asked: Asked, beat: Beat
) -> list[TaskScores]:
    """The scores of the columns that share a base, which is loaded here."""
    from lora_lab.harness.language_model import SharedAnswers, SharedLM

    if model.classifies:
        raise InputError("model.task_type: lm-evaluation-harness asks language models, but this study's bases classify")
    members = [
        None if column.trial is None or column.adapter is None else Trained(column.trial.config, column.adapter)
        for column in columns
    ]
    rows = asked.batch_size or max(
        column.trial.config.training.per_device_eval_batch_size for column in columns if column.trial is not None
    )
    with memory_may_run_out() as shortage:
        base = load_base(model, default_device())
        shared = SharedAnswers(AdaptedBase(base, members, rows, beat), base)
        measured = {column.name: harness.measure(SharedLM(shared, index, rows)) for index, column in enumerate(columns)}
        return harness.scores(measured)
    raise InputError(
        f"--batch-size: {plural(rows, 'row')} of each of {len(columns)} do not fit into memory ({shortage.reason}); "
        "lower it, or evaluate fewer trials at once"
    )
