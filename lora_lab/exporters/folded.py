"""A trained adapter as servers take it best: its scaling inside B, so that none can apply another one."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from lora_lab.common.errors import CheckpointError
from lora_lab.results.card import card

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

PREFIX = "base_model.model."


@dataclass(frozen=True, slots=True)
class LowRank:
    """An adapter that is A and B alone, in float32."""

    config: Mapping[str, Any]
    """PEFT's `adapter_config.json`."""
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]]
    """A [r, d_in] and B [d_out, r] by full module name."""

    @property
    def scaling(self) -> float:
        """The factor before B A."""
        r = self.config["r"]
        return float(self.config["lora_alpha"] / (math.sqrt(r) if self.config["use_rslora"] else r))

    @property
    def endings(self) -> list[str]:
        """The ends of the names of the adapted modules."""
        return sorted({name.rsplit(".", 1)[-1] for name in self.pairs})


def read_low_rank(trial: ExportedTrial) -> LowRank:
    """The trial's trained adapter.

    Raises:
        CheckpointError: it cannot be read.
    """
    assert trial.adapter is not None
    try:
        config = json.loads((trial.adapter / "adapter_config.json").read_text(encoding="utf-8"))
        tensors = load_file(trial.adapter / "adapter_model.safetensors")
        pairs = {
            key.removeprefix(PREFIX).removesuffix(".lora_A.weight"): (
                tensor.astype(np.float32),
                tensors[key.replace(".lora_A.", ".lora_B.")].astype(np.float32),
            )
            for key, tensor in tensors.items()
            if ".lora_A." in key
        }
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"the adapter {trial.adapter} cannot be read ({error}); train the trial again") from error
    return LowRank(config, pairs)


def write_folded(trial: ExportedTrial, folder: Path) -> LowRank:
    """Write a PEFT adapter folder with `lora_alpha = r` and B times the scaling: the same function.

    Returns:
        What was written.

    Raises:
        CheckpointError: the trained adapter cannot be read.
    """
    adapter = read_low_rank(trial)
    scaling = np.float32(adapter.scaling)
    pairs = {name: (a, b * scaling) for name, (a, b) in adapter.pairs.items()}
    config = dict(adapter.config) | {
        "base_model_name_or_path": trial.model,
        "lora_alpha": adapter.config["r"],
        "lora_dropout": 0.0,
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": adapter.endings,
    }
    folder.mkdir()
    tensors = {
        f"{PREFIX}{name}.lora_{side}.weight": matrix
        for name, pair in pairs.items()
        for side, matrix in zip("AB", pair, strict=True)
    }
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    text_of_card = card(trial.spec.study_name, trial.result, trial.findings, folder.name)
    (folder / "README.md").write_text(text_of_card, encoding="utf-8")
    return LowRank(config, pairs)
