"""A trial's adapter with its card, as others may have it: without a path of this machine in it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.results.card import card, hub_id

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial


def stage(trial: ExportedTrial, folder: Path, *, option: str, loaded_from: str) -> str:
    """Write adapter and card into a folder; the card's text.

    Args:
        trial: Whose adapter.
        folder: An empty one.
        option: What asked for it, for messages.
        loaded_from: What the card says that it is loaded from.

    Raises:
        InputError: the adapter was not kept.
    """
    if trial.adapter is None:
        raise InputError(
            f"{option}: the adapter of trial {trial.result.number} was not kept; choose --best or --recommended"
        )
    shutil.copy2(trial.adapter / "adapter_model.safetensors", folder / "adapter_model.safetensors")
    config = json.loads((trial.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = hub_id(trial.config.model.model_name_or_path)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    text = card(trial.spec.study_name, trial.result, trial.findings, loaded_from)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return text
