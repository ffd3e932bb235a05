"""An answer that is handed over token by token, by a model of `transformers` or `peft` alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_lab.training.reference.losses import autocast

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from torch import Tensor

    from lora_lab.training.base.loading import Base


class ModelStream:
    """One answer in work.

    Args:
        base: What the model is made of.
        model: The base itself, or a PEFT model over it, in evaluation mode.
        prompt: Token ids [n].
    """

    def __init__(self, base: Base, model: Any, prompt: np.ndarray) -> None:
        self._base, self._model = base, model
        self._next = torch.from_numpy(prompt)[None]
        self._kept: Any = None

    @torch.no_grad()
    def step(self, choose: Callable[[Tensor], int]) -> int:
        """One more token."""
        with autocast(self._base):
            output = self._model(input_ids=self._next.to(self._base.device), past_key_values=self._kept, use_cache=True)
        self._kept = output.past_key_values
        token = choose(output.logits[0, -1])
        self._next = torch.tensor([[token]])
        return token
