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

    Raises:
        InputError: a later token changes an earlier one's logits, or no gradient goes through this base at all.
    """
    seen = _gradients(model, device, slice(PROBE_LENGTH, PROBE_LENGTH + 1))
    if not all(gradient.isfinite().all() for gradient in seen):
        return  # NaN times zero is not zero; what is wrong is said of the base's loss, which is no number either
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


def _forgets(model: Any, device: torch.device) -> bool:
    """Whether nothing of an example's logits comes from the example before it in its row."""
    positions = torch.arange(PROBE_LENGTH, device=device).repeat(2).unsqueeze(0)
    seen = _gradients(model, device, slice(PROBE_LENGTH, None), position_ids=positions)
    return not any(gradient[:PROBE_LENGTH].any() for gradient in seen)


def _gradients(model: Any, device: torch.device, tokens: slice, **inputs: Tensor) -> list[Tensor]:
    """Gradients of the logits of some tokens of a row with respect to the embeddings of all its tokens.

    Masked attention makes them exactly zero in every dtype, while values differ a little wherever kernels or experts
    group rows.

    Args:
        model: The base.
        device: Of its embeddings.
        tokens: Whose logits, of the 2 x `PROBE_LENGTH` tokens of the row.
        inputs: What the base is given beside the tokens.

    Returns:
        [2 x `PROBE_LENGTH`, d] for each time that the base embeds the row; none where no gradient goes through it.
    """
    ids = torch.arange(2 * PROBE_LENGTH, device=device).unsqueeze(0) % model.get_input_embeddings().weight.shape[0]
    embedded: list[Tensor] = []

    def track(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(track)
    try:
        with torch.enable_grad():
            logits = model(input_ids=ids, use_cache=False, **inputs).logits
    finally:
        hook.remove()
    answer = logits[0, tokens].sum()
    reached = torch.autograd.grad(answer, embedded, allow_unused=True) if answer.requires_grad else ()
    return [gradient.reshape(2 * PROBE_LENGTH, -1) for gradient in reached if gradient is not None]


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
