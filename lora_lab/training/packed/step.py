"""One training step, as the engine makes it and as its memory is measured and predicted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lora_lab.training.live_bytes import LiveBytes, quantization_tensors, resident_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lora_lab.training.packed.model import Layout, PackedModel
    from lora_lab.training.packed.slot import Slot


def add_gradients(model: PackedModel, slots: Sequence[Slot], layout: Layout) -> Tensor:
    """Add a micro-batch's gradients to every slot's; returns [K] its part of each slot's loss.

    A slot's part is the sum over its labels by the number of labels in its whole optimizer step.
    """
    counts = [span.stop - span.start for span in layout.head]
    with model.routed(layout):
        sums = [part.sum() for part in torch.split(model.nll(layout), counts)]
        parts = torch.stack(
            [total / slot.pending.label_tokens for slot, total in zip(slots, sums, strict=True) if slot.pending]
        )
        torch.autograd.backward(parts.sum())
    return parts.detach()


def count_step(model: PackedModel, base: Any, slot: Slot, layout: Layout, *, keep_history: bool = False) -> LiveBytes:
    """Count the memory of one training step of a slot, alone: gradients, clipping, optimizer.

    The optimizer's state is there during the forward and backward pass, as it is in every step but the first.
    """
    slot.step_optimizer()  # gradients are zero here: this makes the optimizer's state
    live = LiveBytes(resident_tensors(base), vocabulary=base.config.vocab_size, keep_history=keep_history)
    live.count("quantization", quantization_tensors(base))
    for term, tensors in slot.tensors().items():
        live.count(term, tensors)
    with live:
        add_gradients(model, [slot], layout)
        live.begin("optimizer")
        slot.clip()
        slot.step_optimizer()
    return live
