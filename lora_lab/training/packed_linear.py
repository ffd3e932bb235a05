"""K adapters in one forward and backward pass of a frozen base.

Rows of the batch belong to slots. Behind every linear module of the base, the rows of slot k that adapt this
module get `y_k += scaling_k (x_k A_k^T) B_k^T`. The base is frozen and rows are independent, so the gradient
of the sum of the trials' losses with respect to one adapter is exactly that trial's own gradient.

A module that a slot does not adapt costs that slot nothing: its rows pass through untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_lab.study.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(slots=True)
class AdapterView:
    """One module's part of one slot's adapter; the tensors are views of the slot's flat buffers."""

    a: Tensor
    """[r, d_in], in the dtype of the computation."""
    bt: Tensor
    """[r, d_out], the transpose of PEFT's B."""
    grad_a: Tensor
    """[r, d_in], in the dtype of the parameters; gradients are added here."""
    grad_bt: Tensor
    """[r, d_out]."""
    scaling: float
    dropout: Callable[[Tensor], Tensor] | None = None
    """From the module's input rows [n, d_in] to a multiplicative mask of 0 and 1 / (1 - p)."""


@dataclass(slots=True)
class Span:
    """The rows `start:stop` of the flattened tokens [T, d] that belong to one slot."""

    start: int
    stop: int
    adapters: Mapping[str, AdapterView]
    """By full module name."""
    parameters: Tensor
    """The slot's flat parameters; makes autograd run the backward pass of every module they act in."""


class Routing:
    """Which rows belong to which slot in the forward pass that comes next."""

    def __init__(self) -> None:
        self.spans: tuple[Span, ...] = ()
        self.rows = 0
        """Rows [T] that every module is given, those of the bare base counted."""


class _AddAdapters(torch.autograd.Function):
    """Adds the adapters' outputs to `y` in place; writes their gradients into the slots' own buffers.

    The gradients are not returned to autograd: adding them straight into each slot's flat buffer keeps them
    apart per trial and saves one accumulation node for each of the K x modules x 2 tensors.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, parts: list[tuple[Span, AdapterView]], *_: Tensor) -> Tensor:
        rows = _rows(x, parts)
        inner, masks = _add(y.view(-1, y.shape[-1]), rows, parts, training=True)
        ctx.parts = parts
        ctx.save_for_backward(rows, *inner, *(mask for mask in masks if mask is not None))
        ctx.masked = [mask is not None for mask in masks]
        ctx.x_shape, ctx.x_dtype = x.shape, x.dtype
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        rows, *saved = ctx.saved_tensors
        count = len(ctx.parts)
        inner, masks = saved[:count], iter(saved[count:])
        grad_out = grad_y.reshape(-1, grad_y.shape[-1]).to(rows.dtype)
        grad_x = _rows_like(rows, ctx.parts) if ctx.needs_input_grad[1] else None
        for (span, view), h, masked in zip(ctx.parts, inner, ctx.masked, strict=True):
            grad_k = grad_out[span.start : span.stop]
            x_k = rows[span.start : span.stop]
            mask = next(masks) if masked else None
            _accumulate(view.grad_bt, h.t(), grad_k, view.scaling)
            grad_h = torch.mm(grad_k, view.bt.t())
            if view.scaling != 1.0:
                grad_h.mul_(view.scaling)
            _accumulate(view.grad_a, grad_h.t(), x_k if mask is None else x_k * mask, 1.0)
            if grad_x is not None:
                target = grad_x[span.start : span.stop]
                torch.mm(grad_h, view.a, out=target)
                if mask is not None:
                    target.mul_(mask)
        nothing = (None,) * (1 + count)
        return grad_y, None if grad_x is None else grad_x.view(ctx.x_shape).to(ctx.x_dtype), *nothing


def _add(
    out: Tensor, rows: Tensor, parts: list[tuple[Span, AdapterView]], *, training: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Add every part to `out` [T, d_out] in place; returns each part's `x A^T` [n, r] and dropout mask."""
    inner: list[Tensor] = []
    masks: list[Tensor | None] = []
    for span, view in parts:
        x_k = rows[span.start : span.stop]
        mask = view.dropout(x_k) if training and view.dropout is not None else None
        h = torch.mm(x_k if mask is None else x_k * mask, view.a.t())
        _accumulate(out[span.start : span.stop], h, view.bt, view.scaling)
        inner.append(h)
        masks.append(mask)
    return inner, masks


def _rows(x: Tensor, parts: list[tuple[Span, AdapterView]]) -> Tensor:
    """The module's input as rows [T, d_in] in the dtype that the adapters compute in."""
    return x.reshape(-1, x.shape[-1]).to(parts[0][1].a.dtype)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scaling: float) -> None:
    """`total += scaling * left @ right`, in the dtype of `total` although the product may be in a lower one."""
    if total.dtype == left.dtype:
        total.addmm_(left, right, alpha=scaling)
    else:
        total.add_(torch.mm(left, right), alpha=scaling)


def _rows_like(rows: Tensor, parts: list[tuple[Span, AdapterView]]) -> Tensor:
    """Room for the gradient of all rows: zero where no adapter acts, uninitialized where one will write."""
    covered = sum(span.stop - span.start for span, _ in parts)
    return torch.empty_like(rows) if covered == rows.shape[0] else torch.zeros_like(rows)


def attach(module: nn.Module, name: str, routing: Routing) -> None:
    """Let the adapters of `routing`'s spans act behind a linear module of the base, under its full name.

    A forward hook leaves the module itself as it was, so quantized and other linear classes work unchanged.
    """
    is_plain = type(module) in (nn.Linear, Conv1D)

    def hook(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        parts = [(span, view) for span in routing.spans if (view := span.adapters.get(name)) is not None]
        if not parts:
            return y
        if not is_plain:  # a quantized product may hand out a view, which must not be written to
            y = y.clone()
        if args[0].numel() != routing.rows * args[0].shape[-1]:
            raise TrainingError(
                f"the base gives {name} {args[0].numel() // args[0].shape[-1]} rows where {routing.rows} tokens go in, "
                "so that trials cannot be told apart there; leave it out of lora.target_modules"
            )
        if torch.is_grad_enabled():
            added: Tensor = _AddAdapters.apply(y, args[0], parts, *(span.parameters for span, _ in parts))  # type: ignore[no-untyped-call]
            return added
        _add(y.view(-1, y.shape[-1]), _rows(args[0], parts), parts, training=False)
        return y

    module.register_forward_hook(hook)
