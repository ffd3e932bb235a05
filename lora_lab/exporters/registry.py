"""Puts a trial's adapter into MLflow's model registry."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import config_label
from lora_lab.exporters.staged import stage
from lora_lab.results.card import base_words

if TYPE_CHECKING:
    from lora_lab.exporters.trial import ExportedTrial
    from lora_lab.tracking.registry import Registered


def register_adapter(trial: ExportedTrial, name: str, tracking_uri: str) -> Registered:
    """Store the adapter and its card as a new version of a registered model; the base is named, not stored.

    Raises:
        InputError: the name cannot be right, the adapter was not kept, or the store has no run of the trial.
        StorageError: the store cannot be reached, or refuses.
    """
    from lora_lab.tracking.registry import check_name, register

    check_name(name)
    model, metrics = trial.config.model, trial.result.metrics
    tags = {
        "base": base_words(model),
        "lora_lab.study": trial.spec.study_name,
        "config": config_label(trial.config, trial.result.params),
    }
    tags |= {"base_revision": model.revision} if model.revision else {}
    tags |= {metric: f"{value:.6g}" for metric, value in metrics.items()}
    params = {f"lora.{key}": str(value) for key, value in trial.config.lora.model_dump(mode="json").items()}
    with tempfile.TemporaryDirectory() as folder:
        loaded_from = "adapter"
        card = stage(trial, Path(folder), option="--register", loaded_from=loaded_from)
        return register(
            tracking_uri,
            trial.spec.study_name,
            trial.result.number,
            name,
            Path(folder),
            params=params,
            tags=tags,
            aliases=tuple(reversed(trial.roles)),
            description=card.partition("---\n\n")[2],
        )
