"""What some bases cannot do although transformers does not say so: found out before a trial relies on it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_lab.common.errors import InputError

PROBE_LENGTH = 7
"""Tokens of the examples with which it is tried whether a base keeps two of them in one row apart."""


def require_causal(model: Any, device: torch.device) -> None:
    """Prove that no token sees a later one: next-token loss on a base that shows it the answer measures nothing.

    The gradient of one token's logits with respect to the later tokens' embeddings is looked at. Masked attention
    makes it exactly zero in every dtype, while values differ a little wherever kernels or experts group rows.

    Raises:
        InputError: a later token changes an earlier one's logits, or no gradient goes through this base at all.
    """
    ids = torch.arange(2 * PROBE_LENGTH, device=device).unsqueeze(0) % model.get_input_embeddings().weight.shape[0]
    embedded: list[Tensor] = []

    def track(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(track)
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids, use_cache=False).logits
    finally:
        hook.remove()
    answer = logits[0, PROBE_LENGTH].sum()
    reached = torch.autograd.grad(answer, embedded, allow_unused=True) if answer.requires_grad else ()
    seen = [gradient.reshape(2 * PROBE_LENGTH, -1) for gradient in reached if gradient is not None]
    name = type(model).__name__
    if not any(gradient[: PROBE_LENGTH + 1].any() for gradient in seen):
        raise InputError(
            f"model.model_name_or_path: no gradient goes through this base ({name}), so no adapter on it would train; "
            "take another base, or another model.quantization"
        )
    if any(gradient[PROBE_LENGTH + 1 :].any() for gradient in seen):
        raise InputError(
            f"model.model_name_or_path: this base is not causal ({name}: tokens see later ones), so next-token loss "
            "would leak the answer; take a decoder (an encoder's config may have is_decoder: true)"
        )


def require_separate_examples(model: Any, device: torch.device) -> None:
    """Prove that examples in one row do not see each other: some architectures know no such mask.

    Raises:
        InputError: this base lets them.
    """
    if "position_ids" not in inspect.signature(model.forward).parameters or not _forgets(model, device):
        raise InputError(
            f"data.packing: {type(model).__name__} lets the tokens of one example see those of another in "
            "the same row; set data.packing to false"
        )


@torch.no_grad()
def _forgets(model: Any, device: torch.device) -> bool:
    """Whether an example's logits are the same whatever other example stands before it in its row."""
    ids = torch.arange(PROBE_LENGTH, device=device)
    rows = torch.stack([torch.cat([ids, ids]), torch.cat([ids + PROBE_LENGTH, ids])])
    positions = torch.cat([ids, ids]).expand(2, -1)
    logits = model(input_ids=rows, position_ids=positions, use_cache=False).logits[:, PROBE_LENGTH:]
    # int8 products treat a column with an outlier in any row in another way
    tolerance = 0.05 if getattr(model, "is_loaded_in_8bit", False) else 1e-6
    return float((logits[0] - logits[1]).abs().max()) <= tolerance * float(logits.abs().max())


def require_recomputation(model: Any) -> None:
    """See that the base has layers whose activations can be computed again.

    Raises:
        InputError: it has none.
    """
    if not any(isinstance(module, GradientCheckpointingLayer) for module in model.modules()):
        raise InputError(
            f"training.gradient_checkpointing: {type(model).__name__} has no layers that transformers can "
            "compute again; set it to false"
        )
