"""What trials measured on every evaluation example, read from the study's folder."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.numpy import load_file

from lora_lab.analysis.paired import ExampleLosses, token_mean
from lora_lab.analysis.replicates import replicate_groups
from lora_lab.common.errors import CheckpointError
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_lab.results.folder import RunFolder
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult

TOLERANCE = 1e-6
"""Relative, or of a score absolute; a file whose mean is further from the trial's figure is of another evaluation."""


def read_example_losses(
    folder: RunFolder, results: Sequence[TrialResult], measure: Measure = EVAL_LOSS
) -> dict[int, ExampleLosses]:
    """Final losses, or negative scores, of every example by trial number, of the trials that comparisons rest on.

    These are the replicates, and all single runs where there are none. Trials whose file is gone, or is of another
    evaluation, are left out.

    Raises:
        CheckpointError: a file is damaged.
    """
    groups = replicate_groups(results, measure)
    repeated = [group for group in groups if len(group.values) > 1]
    runs = [run for group in repeated or groups for run in group.runs.values()]
    read = ((run, _read(path)) for run in runs if (path := _path(folder, run, measure)) is not None)
    return {run.number: losses for run, losses in read if _belongs(run, losses, measure)}


def _path(folder: RunFolder, run: TrialResult, measure: Measure) -> Path | None:
    """The file of the evaluation whose figures a trial has; if it was read off, that may be in the other's folder."""
    owners = [run.number] if run.source is None else [run.number, run.source]
    paths = [folder.files_of(owner).evaluation(run.evaluation, measure.name) for owner in owners]
    return next((path for path in paths if path.is_file()), None)


def _read(path: Path) -> ExampleLosses:
    try:
        arrays = load_file(path)
        return ExampleLosses(arrays["nll"], arrays["label_tokens"], arrays.get("groups"))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"the losses in {path} cannot be read ({error}); remove the file: the report then goes without it"
        ) from error


def _belongs(run: TrialResult, losses: ExampleLosses, measure: Measure) -> bool:
    value = run.metrics.get(measure.name)
    absolute = TOLERANCE if measure.goal == "maximize" else 0.0  # a score may be 0
    mean = measure.as_loss(token_mean(losses))
    return value is not None and math.isclose(mean, value, rel_tol=TOLERANCE, abs_tol=absolute)
