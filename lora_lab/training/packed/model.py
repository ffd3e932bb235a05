"""The base with adapters behind its linear modules: token losses of many slots in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bitsandbytes.nn import Linear8bitLt
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.generation.utils import ALL_CACHE_NAMES

from lora_lab.data.tokens import IGNORED
from lora_lab.training.base.abilities import require_recomputation, require_separate_examples
from lora_lab.training.base.architecture import linear_modules
from lora_lab.training.batch import LabelScores, TokenLosses
from lora_lab.training.packed.blocks import Blocks
from lora_lab.training.packed.frozen import simplify
from lora_lab.training.packed.frozen_head import head_loss
from lora_lab.training.packed.linear import Routing, Span, attach
from lora_lab.training.packed.recompute import Recompute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lora_lab.training.base.loading import Base
    from lora_lab.training.batch import PackedBatch
    from lora_lab.training.packed.linear import Adapter
    from lora_lab.training.packed.slot import Slot

Kept = Mapping[str, Any]
"""What a base keeps of what it has read: a cache of transformers, by the name that its `forward` has for it."""
NOTHING_KEPT: Kept = {}
LOGITS_AT_ONCE = 2**26
"""Logits (rows x vocabulary) that are held at the same time; more are computed in chunks, twice."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A batch on the device, and where every slot's rows and labels lie in it."""

    input_ids: Tensor
    """[R, S] int64, on the device."""
    position_ids: Tensor | None
    """[R, S] int64, on the device, where a row may hold several examples."""
    positions: Tensor
    """[n] int64, on the device: the places of the flattened [R * S] tokens that predict a label."""
    targets: Tensor
    """[n] int64, on the device: the labels there."""
    row_counts: tuple[np.ndarray, ...]
    """Label tokens of every row, int64, slot after slot; they add up to n."""
    denominators: tuple[tuple[int, int], ...] | Tensor
    """Label tokens of every slot, and what their losses are divided by in the optimizer step in work, 1 without one.

    Or [n], on the device, the divisor of every label.
    """
    body: tuple[Span, ...]
    """The slots' rows of the flattened tokens; blocks of slots as one."""
    head: tuple[Span, ...]
    """Each slot's rows of the labels, which are all that goes into the head."""
    recompute: bool
    """Whether activations are computed again in the backward pass instead of kept."""


class PackedModel:
    """Computes token losses with every slot's own adapter.

    Rows are padded on the right and attention is causal, so no real token sees a pad: no attention mask is
    passed, and the fast attention path is used. Where a row holds several examples, transformers makes the mask
    that keeps them apart, of each kind that the base has (full, sliding, ...), from positions that start again.
    """

    def __init__(self, base: Base) -> None:
        self._model = base.model
        self._device = base.device
        self._exact = base.dtype == torch.float64
        self._looks_for_outliers = any(isinstance(module, Linear8bitLt) for module in base.model.modules())
        self.blocks = Blocks()
        """Which slots act as one; whoever has the pack arranges them."""
        self._body, self._head = Routing(), Routing()
        simplify(base.model)
        self._recompute = Recompute(base.model)
        head = base.model.get_output_embeddings()
        self._head_name = base.linears.head
        for name, module in linear_modules(base.model).items():
            if not base.linears.is_usable(name):
                continue
            attach(module, name, self._head if module is head else self._body)
        self._plain_head = head if self._head_is_plain(head) else None
        self._separates = False
        self._gathered: Tensor | None = None
        if self._plain_head is None:
            head.register_forward_pre_hook(self._gather)

    @torch.no_grad()
    def _head_is_plain(self, head: Any) -> bool:
        """Whether logits are just head(hidden), tried out: some models scale or cap them afterwards.

        No value is looked at, so that a base without data (`fake_base`) answers too.
        """
        states: dict[nn.Module, Tensor] = {}
        seen: list[Tensor] = []

        def keep(module: nn.Module, _: Any, y: Any) -> None:
            if isinstance(hidden := getattr(y, "last_hidden_state", None), Tensor):
                states[module] = hidden

        body, ids = self._model.base_model, torch.arange(8, device=self._device).unsqueeze(0)
        hooks = [module.register_forward_hook(keep) for module in body.modules()]
        # Before the head's own hooks, which may cast what it is given.
        hooks.append(head.register_forward_pre_hook(lambda _, args: seen.append(args[0]), prepend=True))
        hooks.append(head.register_forward_hook(lambda _, __, y: seen.append(y)))
        try:
            logits = self._model(input_ids=ids, use_cache=False).logits
            given, output = seen
            makers = [module for module, hidden in states.items() if _is_same(hidden, given)]
            hidden = getattr(body(input_ids=ids, use_cache=False), "last_hidden_state", None)
            if hidden is None:  # of Llama 4, transformers finds no body
                return False
            return logits is output and any(_is_same(states[module], hidden) for module in makers)
        finally:
            for hook in hooks:
                hook.remove()

    def _gather(self, _: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Keep only the positions with a label before the head, in models that go on after it."""
        if self._gathered is None:
            return args
        return (_take(args[0], self._gathered).unsqueeze(0),)

    def require_separate_examples(self) -> None:
        """Raise InputError unless examples in one row do not see each other."""
        if not self._separates:
            require_separate_examples(self._model, self._device)
            self._separates = True

    def is_static(self, slots: Sequence[Slot]) -> bool:
        """Whether passes with these slots' adapters launch the same whatever the tokens are."""
        plain = type(self._plain_head) is nn.Linear and not any(self._head_name in slot.adapters for slot in slots)
        return plain and not self._looks_for_outliers

    def require_recomputation(self) -> None:
        """Raise InputError unless the base has layers that can be computed again."""
        require_recomputation(self._model)

    def layout(self, batch: PackedBatch, slots: Sequence[Adapter | None]) -> Layout:
        """Take a batch to the device; a slot of None is the bare base."""
        length = batch.input_ids.shape[1]
        row, column = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(batch.labels)).numpy()
        row_counts = tuple(np.split(counts, np.cumsum(batch.rows)[:-1]))
        labels = [int(counts.sum()) for counts in row_counts]
        return Layout(
            input_ids=batch.input_ids.to(self._device),
            position_ids=None if batch.position_ids is None else batch.position_ids.to(self._device),
            positions=(row * length + column).to(self._device),
            targets=batch.labels[row, column + 1].to(self._device),
            row_counts=row_counts,
            denominators=tuple(
                (n, 1 if slot is None else slot.denominator) for n, slot in zip(labels, slots, strict=True)
            ),
            body=self.blocks.spans(slots, [rows * length for rows in batch.rows]),
            head=_spans(slots, labels),
            recompute=any(slot.recomputes for slot in slots if slot is not None),
        )

    @contextmanager
    def routed(self, layout: Layout) -> Iterator[None]:
        """Let the layout's adapters act; around a backward pass too, which may run parts of the forward pass again."""
        self._recompute.active = layout.recompute
        try:
            with self._spread((layout.body, layout.input_ids.numel()), (layout.head, len(layout.targets))):
                yield
        finally:
            self._recompute.active = False

    @contextmanager
    def _spread(self, body: tuple[tuple[Span, ...], int], head: tuple[tuple[Span, ...], int]) -> Iterator[None]:
        """Let adapters act in these spans of so many rows: of the tokens, and of what goes into the head."""
        (self._body.spans, self._body.rows), (self._head.spans, self._head.rows) = body, head
        try:
            yield
        finally:
            self._body.spans = self._head.spans = ()

    def token_losses(self, batch: PackedBatch, slots: Sequence[Slot | None]) -> TokenLosses:
        """Losses of all label tokens, for evaluation; a slot of None is the bare base."""
        layout = self.layout(batch, slots)
        with self.routed(layout):
            return TokenLosses(self.nll(layout), np.concatenate(layout.row_counts))

    def next_logits(
        self, ids: Tensor, slots: Sequence[Adapter | None], rows: Sequence[int], kept: Kept, *, keep: bool
    ) -> tuple[Tensor, Kept]:
        """Logits of the token that follows each row, for generation, which takes place outside of any graph.

        Args:
            ids: [R, S] int64, on the device: what the rows read now, behind what is `kept` of them.
            slots: Whose rows they are; None is the bare base.
            rows: Rows of each; they add up to R.
            kept: What the last call returned.
            keep: Whether anything is to be kept of what is read.

        Returns:
            [R, vocabulary], and what the base keeps.
        """
        count, length = ids.shape
        last = torch.arange(1, count + 1, device=ids.device) * length - 1
        body = self.blocks.spans(slots, [own * length for own in rows])
        inputs = {"input_ids": ids, "use_cache": keep, **kept}
        with self._spread((body, ids.numel()), (_spans(slots, rows), count)):
            if self._plain_head is None:
                self._gathered = last
                try:
                    output = self._model(**inputs)
                finally:
                    self._gathered = None
                logits = output.logits
            else:
                output = self._model.base_model(**inputs)
                logits = self._plain_head(self._before_head(output.last_hidden_state, last))
        kept = {name: output[name] for name in ALL_CACHE_NAMES if keep and name in output}
        return logits.reshape(count, -1), kept

    def _before_head(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """What goes into a plain head of these positions [n]: [n, d].

        The head may be on another device where the base is split, and in half precision on k-bit bases.
        """
        assert self._plain_head is not None
        weight = self._plain_head.weight
        return _take(hidden, positions).to(device=weight.device, dtype=weight.dtype)

    def token_hits(self, batch: PackedBatch, slots: Sequence[Slot | None]) -> TokenLosses:
        """Minus 1 for every label token that is the most likely one at its place, otherwise 0, as `token_losses`."""
        layout = self.layout(batch, slots)
        with self.routed(layout):
            return TokenLosses(self._of_labels(layout, self._hits), np.concatenate(layout.row_counts))

    @torch.no_grad()
    def label_scores(self, batch: PackedBatch, adapters: Sequence[Adapter | None]) -> LabelScores:
        """Losses and hits of all label tokens in one pass, outside of any graph; None is the bare base."""
        layout = self.layout(batch, adapters)
        with self.routed(layout):
            nll, hit = self._of_labels(layout, self._both).unbind(dim=1)
        return LabelScores(nll, hit > 0, np.concatenate(layout.row_counts))

    def _both(self, logits: Tensor, targets: Tensor) -> Tensor:
        return torch.stack([self._cross_entropy(logits, targets), -self._hits(logits, targets)], dim=1)

    def nll(self, layout: Layout) -> Tensor:
        """[n]: the loss of every label; to be called while the layout is `routed`."""
        return self._of_labels(layout, self._cross_entropy)

    def _of_labels(self, layout: Layout, compare: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """[n, ...]: what `compare` makes of the logits [n, vocabulary] before every label and of the labels [n]."""
        inputs = {"input_ids": layout.input_ids, "use_cache": False}
        if layout.position_ids is not None:
            inputs["position_ids"] = layout.position_ids
        if self._plain_head is None:
            self._gathered = layout.positions
            try:
                logits = self._model(**inputs).logits
            finally:
                self._gathered = None
            return compare(logits.reshape(-1, logits.shape[-1]), layout.targets)
        hidden = self._before_head(self._model.base_model(**inputs).last_hidden_state, layout.positions)
        frozen = type(self._plain_head) is nn.Linear and not any(
            self._head_name in span.adapters for span in layout.head
        )
        if frozen and compare == self._cross_entropy:
            targets = layout.targets.to(hidden.device)
            nll = head_loss(hidden, targets, self._plain_head, LOGITS_AT_ONCE, layout.denominators)
            return nll.to(self._device)
        chunk = max(1, LOGITS_AT_ONCE // self._plain_head.weight.shape[0])
        if len(layout.targets) <= chunk or self._head_has_dropout():
            return compare(self._plain_head(hidden), layout.targets)
        return self._in_chunks(hidden, layout.targets, chunk, compare)

    def _head_has_dropout(self) -> bool:
        """A mask belongs to all labels of a trial at once: chunk borders, which neighbors move, cannot cut it."""
        views = (span.adapters.get(self._head_name or "") for span in self._head.spans)
        return any(view is not None and view.dropout is not None for view in views)

    def _in_chunks(
        self, hidden: Tensor, targets: Tensor, chunk: int, compare: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """The same in pieces whose logits are computed again in the backward pass instead of kept."""
        whole = self._head.spans

        def piece(start: int, hidden: Tensor, targets: Tensor) -> Tensor:
            self._head.spans, self._head.rows = _cut(whole, start, start + len(targets)), len(targets)
            try:
                return compare(self._plain_head(hidden), targets)  # type: ignore[misc]
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
        logits = logits if self._exact else logits.float()
        return functional.cross_entropy(logits, targets.to(logits.device), reduction="none").to(self._device)

    def _hits(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -(logits.argmax(dim=-1) == targets.to(logits.device)).float().to(self._device)


def _take(hidden: Tensor, positions: Tensor) -> Tensor:
    """[n, d]: the rows of [R, S, d] at these places of the flattened tokens."""
    return hidden.reshape(-1, hidden.shape[-1])[positions.to(hidden.device)]


def _is_same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are views of all of the same memory."""
    storages = [tensor.untyped_storage()._cdata for tensor in (one, other)]  # noqa: SLF001 -- it has no public name
    return one.shape == other.shape and storages[0] == storages[1]


def _spans(slots: Sequence[Adapter | None], sizes: Sequence[int]) -> tuple[Span, ...]:
    """Each slot's own, as they may be cut at any row."""
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
