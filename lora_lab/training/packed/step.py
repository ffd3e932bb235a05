"""One training step, as the engine makes it and as its memory is measured and predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_lab.training.batch import TokenLosses
from lora_lab.training.live_bytes import LiveBytes, quantization_tensors, resident_tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lora_lab.training.packed.model import Layout, PackedModel
    from lora_lab.training.packed.slot import Slot


def add_gradients(model: PackedModel, slots: Sequence[Slot], layout: Layout) -> Tensor:
    """Add a micro-batch's gradients to every slot's; returns [K] its part of each slot's loss.

    A slot's part is its objective's, over the denominator of its whole optimizer step.
    """
    with model.routed(layout):
        parts = torch.stack(losses_of(slots, layout, model.nll(layout)))
        torch.autograd.backward(parts.sum())
    return parts.detach()


def losses_of(slots: Sequence[Slot], layout: Layout, nll: Tensor) -> list[Tensor]:
    """Each slot's part of its loss, from the token losses [n]; nothing holds these behind it any longer."""
    labels = torch.split(nll, [int(counts.sum()) for counts in layout.row_counts])
    return [
        slot.objective.loss(TokenLosses(own, counts), slot.pending.denominator)
        for slot, own, counts in zip(slots, labels, layout.row_counts, strict=True)
        if slot.pending
    ]


def count_step(
    model: PackedModel,
    base: Any,
    slot: Slot,
    layout: Layout,
    *,
    keep_history: bool = False,
    between: Callable[[], object] | None = None,
) -> LiveBytes:
    """Count the memory of one training step of a slot, alone: gradients, clipping, optimizer."""
    live = LiveBytes(
        resident_tensors(base),
        vocabulary=base.config.get_text_config().vocab_size,
        keep_history=keep_history,
        between=between,
    )
    live.count("quantization", quantization_tensors(base))
    for term, tensors in slot.tensors().items():
        live.count(term, tensors)
    with live:
        add_gradients(model, [slot], layout)
        live.begin("optimizer")
        slot.clip()
        slot.step_optimizer()
    return live
