"""The base with the adapter in its weights: a model folder for everything that reads transformers' format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.training.merging import write_merged

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

MODEL = "model"


def write(trial: ExportedTrial, folder: Path) -> str:
    """Write the merged model; a command that serves it."""
    assert trial.adapter is not None
    (folder / MODEL).mkdir()
    write_merged(trial.location, trial.config.model.revision, trial.adapter, folder / MODEL)
    return f"transformers serve {MODEL}"
