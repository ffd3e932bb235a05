"""The base with adapters behind its linear modules: token losses of many slots in one forward pass."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lora_lab.training.architecture import linear_modules
from lora_lab.training.packed_linear import Routing, Span, attach

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from lora_lab.training.base import Base
    from lora_lab.training.slot import Slot

IGNORED = -100
LOGITS_AT_ONCE = 2**26
"""Logits (rows x vocabulary) that are held at the same time; more are computed in chunks, twice."""


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of several slots, padded on the right to one length, slot after slot."""

    input_ids: Tensor
    """[R, S] int64, on the CPU."""
    labels: Tensor
    """[R, S] int64, -100 where no loss is taken, on the CPU."""
    rows: tuple[int, ...]
    """Rows of each slot; they add up to R."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch on the device, and where every slot's rows and labels lie in it."""

    input_ids: Tensor
    """[R, S] int64, on the device."""
    positions: Tensor
    """[n] int64, on the device: the places of the flattened [R * S] tokens that predict a label."""
    targets: Tensor
    """[n] int64, on the device: the labels there."""
    row_counts: Tensor
    """[R] int64, on the CPU: label tokens of every row; they add up to n."""
    body: tuple[Span, ...]
    """The slots' rows of the flattened tokens."""
    head: tuple[Span, ...]
    """The slots' rows of the labels, which are all that goes into the head."""


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Negative log-likelihoods of the label tokens, in nats."""

    nll: Tensor
    """[n], float32 (float64 for a float64 base), on the device, slot after slot and row after row."""
    row_counts: Tensor
    """[R] int64 on the CPU: label tokens of every row; they add up to n."""


def pad_rows(rows: Sequence[np.ndarray], length: int, value: int) -> Tensor:
    """[len(rows), length] int64, padded on the right with `value`."""
    padded = torch.full((len(rows), length), value, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.from_numpy(row)
    return padded


class PackedModel:
    """Computes token losses with every slot's own adapter.

    Rows are padded on the right and attention is causal, so no real token sees a pad: no attention mask is
    passed, and the fast attention path is used.
    """

    def __init__(self, base: Base) -> None:
        self._model = base.model
        self._device = base.device
        self._exact = base.dtype == torch.float64
        self._body, self._head = Routing(), Routing()
        head = base.model.get_output_embeddings()
        self._head_name = base.linears.head
        for name, module in linear_modules(base.model).items():
            attach(module, name, self._head if module is head else self._body)
        self._plain_head = head if self._head_is_plain(head) else None
        self._gathered: Tensor | None = None
        if self._plain_head is None:
            head.register_forward_pre_hook(self._gather)

    @torch.no_grad()
    def _head_is_plain(self, head: Any) -> bool:
        """Whether logits are just head(hidden), tried out: some models scale or cap them afterwards."""
        ids = torch.arange(8, device=self._device).unsqueeze(0)
        expected = self._model(input_ids=ids, use_cache=False).logits
        hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return hidden.shape[-1] == head.weight.shape[-1] and torch.equal(expected, head(hidden))

    def _gather(self, _: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keep only the positions with a label before the head, in models that go on after it."""
        if self._gathered is None:
            return args
        return (args[0].reshape(-1, args[0].shape[-1])[self._gathered].unsqueeze(0),)

    def layout(self, batch: PackedBatch, slots: Sequence[Slot | None]) -> Layout:
        """Take a batch to the device; a slot of None is the bare base."""
        length = batch.input_ids.shape[1]
        row, column = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        row_counts = torch.bincount(row, minlength=len(batch.labels))
        label_counts = [int(part.sum()) for part in torch.split(row_counts, list(batch.rows))]
        return Layout(
            input_ids=batch.input_ids.to(self._device),
            positions=(row * length + column).to(self._device),
            targets=batch.labels[row, column + 1].to(self._device),
            row_counts=row_counts,
            body=_spans(slots, [rows * length for rows in batch.rows]),
            head=_spans(slots, label_counts),
        )

    @contextmanager
    def routed(self, layout: Layout) -> Iterator[None]:
        """Let the layout's adapters act; around a backward pass too, which may run parts of the forward pass again."""
        self._body.spans, self._body.rows = layout.body, layout.input_ids.numel()
        self._head.spans, self._head.rows = layout.head, len(layout.targets)
        try:
            yield
        finally:
            self._body.spans = self._head.spans = ()

    def token_losses(self, batch: PackedBatch, slots: Sequence[Slot | None]) -> TokenLosses:
        """Losses of all label tokens, for evaluation; a slot of None is the bare base."""
        layout = self.layout(batch, slots)
        with self.routed(layout):
            return TokenLosses(self.nll(layout), layout.row_counts)

    def nll(self, layout: Layout) -> Tensor:
        """[n]: the loss of every label; to be called while the layout is `routed`."""
        return self._nll(layout.input_ids, layout.positions, layout.targets)

    def _nll(self, input_ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        if self._plain_head is None:
            self._gathered = positions
            try:
                logits = self._model(input_ids=input_ids, use_cache=False).logits
            finally:
                self._gathered = None
            return self._cross_entropy(logits.reshape(-1, logits.shape[-1]), targets)
        hidden = self._model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        hidden = hidden.reshape(-1, hidden.shape[-1])[positions]
        chunk = max(1, LOGITS_AT_ONCE // self._plain_head.weight.shape[0])
        if len(targets) <= chunk or self._head_has_dropout():
            return self._cross_entropy(self._plain_head(hidden), targets)
        return self._in_chunks(hidden, targets, chunk)

    def _head_has_dropout(self) -> bool:
        """A mask belongs to all labels of a trial at once: chunk borders, which neighbors move, cannot cut it."""
        views = (span.adapters.get(self._head_name or "") for span in self._head.spans)
        return any(view is not None and view.dropout is not None for view in views)

    def _in_chunks(self, hidden: Tensor, targets: Tensor, chunk: int) -> Tensor:
        """The same in pieces whose logits are computed again in the backward pass instead of kept."""
        whole = self._head.spans

        def piece(start: int, hidden: Tensor, targets: Tensor) -> Tensor:
            self._head.spans, self._head.rows = _cut(whole, start, start + len(targets)), len(targets)
            try:
                return self._cross_entropy(self._plain_head(hidden), targets)  # type: ignore[misc]
            finally:
                self._head.spans = ()

        starts = range(0, len(targets), chunk)
        return torch.cat(
            [
                checkpoint(piece, s, hidden[s : s + chunk], targets[s : s + chunk], use_reentrant=False)
                if torch.is_grad_enabled()
                else piece(s, hidden[s : s + chunk], targets[s : s + chunk])
                for s in starts
            ]
        )

    def _cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(logits if self._exact else logits.float(), targets, reduction="none")


def _spans(slots: Sequence[Slot | None], sizes: Sequence[int]) -> tuple[Span, ...]:
    spans, start = [], 0
    for slot, size in zip(slots, sizes, strict=True):
        if slot is not None:
            spans.append(Span(start, start + size, slot.adapters, slot.parameters))
        start += size
    return tuple(spans)


def _cut(spans: tuple[Span, ...], start: int, stop: int) -> tuple[Span, ...]:
    """The parts of `spans` inside `start:stop`, counted from `start`."""
    return tuple(
        Span(max(span.start, start) - start, min(span.stop, stop) - start, span.adapters, span.parameters)
        for span in spans
        if span.start < stop and span.stop > start
    )
