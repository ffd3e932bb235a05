"""The base with the adapter in its weights: a model folder for everything that reads transformers' format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.training.merging import write_merged, write_merged_classifier

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

MODEL = "model"


def write(trial: ExportedTrial, folder: Path) -> str:
    """Write the merged model; a command that serves it."""
    assert trial.adapter is not None
    (folder / MODEL).mkdir()
    model = trial.config.model
    if model.labels is not None:
        write_merged_classifier(trial.location, model.revision, model.labels, trial.adapter, folder / MODEL)
        return f"python -c \"from transformers import pipeline; print(pipeline(model='{MODEL}')('Hello'))\""
    write_merged(trial.location, model.revision, trial.adapter, folder / MODEL)
    return f"transformers serve {MODEL}"
