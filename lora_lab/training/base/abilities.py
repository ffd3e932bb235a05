"""What some bases cannot do although transformers does not say so: found out before a trial relies on it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

from lora_lab.common.errors import InputError

PROBE_LENGTH = 7
"""Tokens of the examples with which it is tried whether a base keeps two of them in one row apart."""


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
