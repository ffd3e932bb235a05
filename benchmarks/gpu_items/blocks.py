"""Slots of one rank, one set of modules and equally many tokens as one block of batched products: an experiment.

The product's engine loops over slots, which costs launches on a GPU. Here the flat buffers of such slots are the rows
of pack-level buffers [K, P], a module's adapters are strided views [K, r, d] of them, and one batched product takes the
place of K. Results differ from the loop's by rounding at most. A block of `merge` lasts until `single`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from lora_lab.training.packed import linear
from lora_lab.training.packed.linear import AdapterView, Span

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from lora_lab.training.packed.slot import Slot
    from lora_lab.training.packed_engine import PackedEngine

LOOP = linear._add, linear._add_gradients
"""The product's own way."""


@dataclass(frozen=True, slots=True)
class Block:
    """K slots that act as one; `adapters` are those of a `Span`, with a dimension [K] in front."""

    members: tuple[Slot, ...]
    adapters: Mapping[str, AdapterView]
    parameters: Tensor


def merge(engine: PackedEngine) -> int:
    """Let slots of one shape be blocks, and stand side by side; returns how many slots are in one."""
    linear._add, linear._add_gradients = _add, _add_gradients
    groups: dict[Any, list[Slot]] = {}
    for slot in engine._slots.values():
        shape = (slot.config.lora.r, tuple(slot.adapters), slot.config.training.per_device_train_batch_size)
        groups.setdefault(shape, []).append(slot)
    blocks = [_share(members) for members in groups.values() if len(members) > 1]
    engine._slots = {slot.number: slot for members in groups.values() for slot in members}
    plain = type(engine._model).layout

    def layout(batch: Any, slots: Any) -> Any:
        made = plain(engine._model, batch, slots)
        return dataclasses.replace(made, body=_merged(made.body, blocks))

    engine._model.layout = layout
    return sum(len(block.members) for block in blocks)


def single(engine: PackedEngine) -> None:
    """Go back to the product's loop over slots."""
    linear._add, linear._add_gradients = LOOP
    vars(engine._model).pop("layout", None)


def _share(slots: Sequence[Slot]) -> Block:
    """Put the flat buffers of slots of one shape side by side: [K, P], each slot's own a row of it."""
    first, count = slots[0], len(slots)
    values = torch.stack([slot.parameters.detach() for slot in slots])
    gradients = torch.zeros_like(values)
    same = first._computed.dtype == values.dtype
    computed = values if same else torch.stack([slot._computed for slot in slots])
    for k, slot in enumerate(slots):
        slot.parameters = values[k].detach().requires_grad_()
        slot._gradient = gradients[k]
        slot.parameters.grad = slot._gradient
        slot._computed = computed[k]
        slot.adapters = slot._views(tuple(slot.adapters), {})
        slot._optimizer = slot._make_optimizer()
    sizes = [shape.numel() for shape in first._shapes]
    cuts = [
        [part.view(count, *shape) for part, shape in zip(torch.split(flat, sizes, dim=1), first._shapes, strict=True)]
        for flat in (computed, gradients)
    ]
    scalings = [slot.config.lora.scaling for slot in slots]
    scaling: Any = scalings[0]
    if len(set(scalings)) > 1:
        scaling = torch.tensor(scalings, dtype=computed.dtype, device=values.device).view(count, 1, 1)
    half = len(first.adapters)
    adapters = {
        name: AdapterView(
            *(cut[index + side] for cut in cuts for side in (0, half)),
            scaling,
            [slot.adapters[name] for slot in slots] if first.adapters[name].dropout else None,
        )
        for index, name in enumerate(first.adapters)
    }
    return Block(tuple(slots), adapters, values.detach().requires_grad_())


def _merged(spans: Sequence[Span], blocks: Sequence[Block]) -> tuple[Span, ...]:
    """The spans of a block's slots, which follow each other and are equally long, as one."""
    of = {id(slot.parameters): block for block in blocks for slot in block.members}
    merged: list[Span] = []
    start = 0
    while start < len(spans):
        block = of.get(id(spans[start].parameters))
        run = spans[start : start + (1 if block is None else len(block.members))]
        whole = block is not None and [id(span.parameters) for span in run] == [id(m.parameters) for m in block.members]
        if block is not None and whole and len({span.stop - span.start for span in run}) == 1:
            merged.append(Span(run[0].start, run[-1].stop, block.adapters, block.parameters))
            start += len(run)
        else:
            merged.append(spans[start])
            start += 1
    return tuple(merged)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scaling: float) -> None:
    """`total += scaling * left @ right`, batched, in the dtype of `total`."""
    if total.dtype == left.dtype:
        total.baddbmm_(left, right, alpha=scaling)
    elif total.device.type == "cuda":
        total.add_(torch.bmm(left, right, out_dtype=total.dtype), alpha=scaling)
    else:
        total.add_(torch.bmm(left, right), alpha=scaling)


def _add(
    out: Tensor, rows: Tensor, parts: list[tuple[Span, AdapterView]], *, training: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    """As `packed.linear._add`; a view of three dimensions is a block."""
    inner: list[Tensor] = []
    masks: list[Tensor | None] = []
    for span, view in parts:
        if view.a.dim() == 2:
            h, mask = LOOP[0](out, rows, [(span, view)], training=training)
            inner += h
            masks += mask
            continue
        count = view.a.shape[0]
        x = rows[span.start : span.stop].view(count, -1, rows.shape[1])
        dropped = training and view.dropout
        mask = (
            torch.stack([one.dropout(x[k]) * one.dropout_gain for k, one in enumerate(view.dropout)])
            if dropped
            else None
        )
        h = torch.bmm(x if mask is None else x * mask, view.a.transpose(1, 2))
        equal = isinstance(view.scaling, float)
        h = h if equal else h * view.scaling
        total = out[span.start : span.stop].view(count, -1, out.shape[1])
        _accumulate(total, h, view.bt, view.scaling if equal else 1.0)
        inner.append(h)
        masks.append(mask)
    return inner, masks


def _add_gradients(ctx: Any, saved: tuple[Tensor, ...], grad_y: Tensor, grad_x: Tensor | None) -> None:
    """As `packed.linear._add_gradients`."""
    rows, *others = saved
    count = len(ctx.parts)
    grad_y = grad_y.to(rows.dtype)
    masks = iter(others[count:])
    for part, h, masked in zip(ctx.parts, others[:count], ctx.masked, strict=True):
        mask = next(masks) if masked else None
        if part[1].a.dim() == 2:
            one = SimpleNamespace(parts=[part], masked=[masked])
            LOOP[1](one, (rows, h, *([mask] if masked else [])), grad_y, grad_x)
        else:
            _add_block_gradients(part, rows, h, mask, grad_y, grad_x)


def _add_block_gradients(
    part: tuple[Span, AdapterView], rows: Tensor, h: Tensor, mask: Tensor | None, grad_y: Tensor, grad_x: Tensor | None
) -> None:
    span, view = part

    def cut(tensor: Tensor) -> Tensor:
        return tensor[span.start : span.stop].view(view.a.shape[0], -1, tensor.shape[1])

    equal = isinstance(view.scaling, float)
    grad, x = cut(grad_y), cut(rows)
    _accumulate(view.grad_bt, h.transpose(1, 2), grad, view.scaling if equal else 1.0)
    grad_h = torch.bmm(grad, view.bt.transpose(1, 2))
    if not equal or view.scaling != 1.0:
        grad_h.mul_(view.scaling)
    _accumulate(view.grad_a, grad_h.transpose(1, 2), x if mask is None else x * mask, 1.0)
    if grad_x is None:
        return
    if mask is None:
        _accumulate(cut(grad_x), grad_h, view.a, 1.0)
    else:
        cut(grad_x).add_(torch.bmm(grad_h, view.a).mul_(mask))
