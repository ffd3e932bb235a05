"""Gradient checkpointing: the activations of a decoder layer are computed again in the backward pass, not kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class Recompute:
    """Wraps the decoder layers of a base; they recompute while `active`.

    transformers has the same, but only for a model in training mode, in which the base's own dropout would act.
    No generator state is kept for the second pass: the base draws no random numbers, and the adapters' dropout
    masks are functions of the step and the module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.active = False
        for layer in model.modules():
            if isinstance(layer, GradientCheckpointingLayer):
                layer.forward = self._wrapped(layer.forward)

    def _wrapped(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def recomputed(*args: Any, **keywords: Any) -> Any:
            if not (self.active and torch.is_grad_enabled()):
                return forward(*args, **keywords)
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **keywords)

        return recomputed
