"""A trained adapter as it lies on disk: PEFT's config, and its tensors by the modules that they belong to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file

from lora_lab.common.errors import CheckpointError
from lora_lab.training.base.adapters import Weights

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

PREFIX = "base_model.model."
SIDES = frozenset({"lora_A.weight", "lora_B.weight"})
"""What a plain adapter has of every module."""


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """The contents of a PEFT adapter folder."""

    config: LoraConfig
    low_rank: Mapping[str, Mapping[str, Tensor]]
    """By module: its tensors by the end of their names (`lora_A.weight`, ...)."""
    whole: Mapping[str, Tensor]
    """Biases and modules that were trained in full, by their names in the base."""

    @classmethod
    def read(cls, folder: Path) -> StoredAdapter:
        """Read `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            CheckpointError: they are damaged.
        """
        low_rank: dict[str, dict[str, Tensor]] = {}
        whole = {}
        try:
            tensors, config = load_file(folder / "adapter_model.safetensors"), LoraConfig.from_pretrained(str(folder))
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise CheckpointError(f"the adapter {folder} cannot be read ({error}); train the trial again") from error
        for key, tensor in tensors.items():
            name = key.removeprefix(PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
            module, found, end = name.partition(".lora_")
            if found:
                low_rank.setdefault(module, {})[f"lora_{end}"] = tensor
            else:
                whole[name] = tensor
        return cls(config, low_rank, whole)

    @property
    def has_experts(self) -> bool:
        """Whether it has the stacked adapters of many experts."""
        return any(pair["lora_A.weight"].shape[0] > self.config.r for pair in self.low_rank.values())

    @property
    def scaling(self) -> float:
        """What the product of B and A is multiplied by."""
        return float(self.config.lora_alpha / (math.sqrt(self.config.r) if self.config.use_rslora else self.config.r))

    @property
    def plain(self) -> Mapping[str, Weights] | None:
        """A and B of each linear module; None where they are not all that distinguishes the model from its base."""
        only_sides = all(pair.keys() == SIDES for pair in self.low_rank.values())
        changes_base = self.config.init_lora_weights == "loftq"
        if self.whole or self.config.target_parameters or changes_base or not only_sides:
            return None
        return {name: Weights(pair["lora_A.weight"], pair["lora_B.weight"]) for name, pair in self.low_rank.items()}
