"""The adapter that a trial started from, for a trainer that would draw another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.training.base.adapters import initial_weights, lora_config, save_adapter
from lora_lab.training.base.loading import DTYPES

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial


def write_initial_adapter(trial: ExportedTrial, folder: Path) -> None:
    """Write the PEFT adapter folder that training starts from."""
    config = trial.config
    drawn_in = trial.dtype.name if config.model.quantization == "none" else "float32"
    weights = initial_weights(config.lora, trial.linears, config.training.seed, DTYPES[drawn_in])
    save_adapter(folder, lora_config(config.lora, trial.linears), config.model, weights, trial.model)
