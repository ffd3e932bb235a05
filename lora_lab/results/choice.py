"""The chosen trials as files: `best/` (lowest loss) and `recommended/` (cheapest within the margin)."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import yaml

from lora_lab.common.files import replacing_folder

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.study.results import TrialResult


def write_choice(folder: Path, result: TrialResult, adapter: Path | None, card: str = "") -> None:
    """Write one trial's adapter and configuration into `folder`, replacing what was there.

    ::

        adapter/                PEFT: adapter_config.json, adapter_model.safetensors; README.md, the card
        adapter_config.json     the same config, for tools that want only the settings
        config.yaml             the trial's settings in the words of a study file, and its figures

    Without an adapter there is only the last one, which a training can start from.

    Raises:
        StorageError: the folder cannot be written.
    """
    with replacing_folder(folder) as partial:
        if adapter is not None:
            shutil.copytree(adapter, partial / "adapter")
            if card:
                (partial / "adapter" / "README.md").write_text(card, encoding="utf-8")
            shutil.copy2(adapter / "adapter_config.json", partial / "adapter_config.json")
        (partial / "config.yaml").write_text(configuration_yaml(result))


def configuration_yaml(result: TrialResult) -> str:
    """A trial's whole configuration as YAML whose sections may be pasted into a study file."""
    sections = result.config.model_dump(mode="json", exclude_none=True)
    sections["lora"].pop("alpha_ratio", None)
    sections["lora"]["lora_alpha"] = result.config.lora.alpha
    figures = {name: round(value, 6) for name, value in result.metrics.items()}
    header = f"# Trial {result.number}; the sections below are those of a study file.\n"
    measured = "# Measured: " + json.dumps(figures) + "\n"
    return header + measured + str(yaml.safe_dump(sections, sort_keys=False))
