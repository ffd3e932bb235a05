"""Losses of a batch by a plain forward pass of `transformers`: of its label tokens, or of the classes of its rows."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from lora_lab.data.tokens import IGNORED
from lora_lab.training.batch import LabelScores, TokenLosses

if TYPE_CHECKING:
    from torch import Tensor

    from lora_lab.training.base.loading import Base
    from lora_lab.training.batch import PackedBatch


def label_losses(base: Base, model: Any, batch: PackedBatch) -> TokenLosses:
    """The losses of the label tokens, or of the classes, row after row.

    Args:
        base: What the model is made of.
        model: The base itself, or a PEFT model over it.
        batch: Rows of one trial, on any device.
    """
    if batch.classes is not None:
        logits = class_logits(base, model, batch)
        labels, counts = batch.classes.to(base.device), np.ones(len(batch.classes), np.int64)
    else:
        logits, labels, counts = _label_logits(base, model, batch)
    exact = base.dtype == torch.float64  # transformers' own loss would go to float32 here too
    return TokenLosses(functional.cross_entropy(logits if exact else logits.float(), labels, reduction="none"), counts)


def class_logits(base: Base, model: Any, batch: PackedBatch) -> Tensor:
    """The logits [R, classes] of every row."""
    given = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "token_type_ids": batch.token_type_ids,
    }
    inputs = {name: tensor.to(base.device) for name, tensor in given.items() if tensor is not None}
    with autocast(base):
        logits: Tensor = model(**inputs).logits
    return logits


def label_hits(base: Base, model: Any, batch: PackedBatch) -> TokenLosses:
    """Minus 1 for every label token that is the most likely one at its place, otherwise 0, as `label_losses`."""
    logits, labels, counts = _label_logits(base, model, batch)
    return TokenLosses(-(logits.argmax(dim=-1) == labels).float(), counts)


@torch.no_grad()
def label_scores(base: Base, model: Any, batch: PackedBatch) -> LabelScores:
    """Losses and hits of the label tokens in one pass, row after row."""
    logits, labels, counts = _label_logits(base, model, batch)
    exact = base.dtype == torch.float64
    nll = functional.cross_entropy(logits if exact else logits.float(), labels, reduction="none")
    return LabelScores(nll, logits.argmax(dim=-1) == labels, counts)


def _label_logits(base: Base, model: Any, batch: PackedBatch) -> tuple[Tensor, Tensor, np.ndarray]:
    """The logits [n, vocabulary] before every label, the labels [n], and how many of them each row has."""
    # Rows are padded on the right and attention is causal, so no real token sees a pad; where a row holds several
    # examples, transformers keeps them apart by their positions.
    inputs = {"input_ids": batch.input_ids.to(base.device)}
    if batch.position_ids is not None:
        inputs["position_ids"] = batch.position_ids.to(base.device)
    labels = batch.labels[:, 1:].to(base.device)
    learned = labels != IGNORED
    with autocast(base):
        logits = model(**inputs, use_cache=False).logits
    return logits[:, : labels.shape[1]][learned], labels[learned], np.array(learned.sum(dim=1).tolist())


def autocast(base: Base) -> Any:
    """The autocast of `Trainer` with `bf16`: products in the base's half precision, adapters kept in float32."""
    if base.compute_dtype in (torch.float32, torch.float64):
        return nullcontext()
    return torch.autocast(base.device.type, dtype=base.compute_dtype)
