"""A trained adapter beside others in a pack: what a slot is to a trial in training, less all that trains it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lora_lab.training.packed.linear import AdapterView

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.training.base.adapters import Weights
    from lora_lab.training.base.loading import Base


@dataclass(frozen=True, slots=True, eq=False)
class TrainedAdapter:
    """An `Adapter` that no step changes."""

    adapters: Mapping[str, AdapterView]
    """By full module name, on the devices of the modules and in the dtype of the computation."""
    parameters: torch.Tensor
    """Empty: no gradient is taken."""
    denominator: int = 1
    recomputes: bool = False

    @classmethod
    def of(cls, weights: Mapping[str, Weights], scaling: float, base: Base) -> TrainedAdapter:
        """An adapter on a base.

        Args:
            weights: A [r, d_in] and B [d_out, r] by full module name, as PEFT has them.
            scaling: What B A is multiplied by.
            base: Whose modules it is on.
        """

        def placed(name: str, side: torch.Tensor) -> torch.Tensor:
            device = base.module_devices.get(name, base.device)
            return side.to(device=device, dtype=base.compute_dtype).contiguous()

        nothing = torch.empty(0, device=base.device)
        views = {
            name: AdapterView(placed(name, pair.a), placed(name, pair.b.t()), nothing, nothing, scaling)
            for name, pair in weights.items()
        }
        return cls(views, nothing)
