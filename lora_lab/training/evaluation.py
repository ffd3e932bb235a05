"""Held-out losses of every example, for several slots in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch

from lora_lab.training.batch import padded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.training.batch import PackedBatch, TokenLosses

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)


class Measurable(Protocol[S_contra]):
    """What computes the losses of a batch; `S_contra` is what it knows as a trial."""

    def token_losses(self, batch: PackedBatch, slots: Sequence[S_contra]) -> TokenLosses:
        """Losses of all label tokens."""


@dataclass(frozen=True, slots=True)
class ExampleLosses:
    """What an evaluation measured, example by example, in the order of the dataset."""

    nll: np.ndarray
    """[n] float64: negative log-likelihood summed over an example's label tokens, in nats."""
    label_tokens: np.ndarray
    """[n] int64."""

    @property
    def mean(self) -> float:
        """Nats per label token over the whole dataset."""
        return float(self.nll.sum() / self.label_tokens.sum())


@torch.no_grad()
def evaluate(
    model: Measurable[S], dataset: TokenizedDataset, slots: Sequence[S], rows_per_slot: int
) -> list[ExampleLosses]:
    """Measure every slot (for the packed model, None is the bare base) on every example of `dataset`.

    Examples are taken in order of length, so that little is padded; which examples share a batch does not
    depend on the slots.
    """
    order = np.argsort([-len(ids) for ids in dataset.input_ids], kind="stable")
    nll = np.zeros((len(slots), len(dataset)))
    counts = np.zeros(len(dataset), dtype=np.int64)
    for start in range(0, len(order), rows_per_slot):
        chosen = order[start : start + rows_per_slot]
        batch = padded([dataset], [chosen]).repeated(len(slots))
        losses = model.token_losses(batch, slots)
        rows = torch.repeat_interleave(losses.row_counts)
        sums = np.bincount(rows.numpy(), losses.nll.double().cpu().numpy(), minlength=len(batch.input_ids))
        nll[:, chosen] = sums.reshape(len(slots), -1)
        counts[chosen] = losses.row_counts[: len(chosen)].numpy()
    return [ExampleLosses(row, counts) for row in nll]
