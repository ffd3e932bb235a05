"""K adapters in one forward and backward pass of a frozen base.

Rows of the batch belong to slots. Behind every linear module of the base, the rows of slot k that adapt this
module get `y_k += scaling_k (x_k A_k^T) B_k^T`. The base is frozen and rows are independent, so the gradient
of the sum of the trials' losses with respect to one adapter is exactly that trial's own gradient.

A plain `nn.Linear` and its adapters are one operation, in which the gradients of the input are added in place; behind
quantized modules, Conv1D, and modules whose `forward` is somebody else's, the adapters act in a hook.

A module that a slot does not adapt costs that slot nothing: its rows pass through untouched.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_lab.common.errors import TrainingError
from lora_lab.training.packed.frozen import product

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class UnpackableError(TrainingError):
    """The base's forward pass does not let trials be told apart; a trial alone can train on it."""


@dataclass(slots=True)
class AdapterView:
    """One module's part of one slot's adapter, or of a block of K slots, whose tensors have a dimension [K] in front.

    The tensors are views of the flat buffers of slots.
    """

    a: Tensor
    """[r, d_in], in the dtype of the computation."""
    bt: Tensor
    """[r, d_out], the transpose of PEFT's B."""
    grad_a: Tensor
    """[r, d_in], in the dtype of the parameters; gradients are added here."""
    grad_bt: Tensor
    """[r, d_out]."""
    scaling: float | Tensor
    """[K, 1, 1] where the slots of a block differ in it."""
    dropout: Callable[[Tensor], Tensor] | None = None
    """From the module's input rows [n, d_in] to the mask of those elements that dropout keeps."""
    masked_scaling: float | Tensor = 1.0
    """Scaling / (1 - p), for masked inputs; 1 / (1 - p) by itself, rounded to bfloat16, would be off by 0.2%."""

    def scaled(self, *, masked: bool) -> float | Tensor:
        """The scaling of the output and of its gradients, with the gain of dropout where there is a mask."""
        return self.masked_scaling if masked else self.scaling


class Adapter(Protocol):
    """An adapter that acts on rows of a batch: that of a trial in training (`Slot`), or a trained one."""

    @property
    def adapters(self) -> Mapping[str, AdapterView]:
        """The parts of the adapter by full module name."""

    @property
    def parameters(self) -> Tensor:
        """The flat parameters that `adapters` are views of."""

    @property
    def denominator(self) -> int:
        """What the losses of its rows are divided by where gradients are taken."""

    @property
    def recomputes(self) -> bool:
        """Whether activations are computed again in the backward pass instead of kept."""


@dataclass(slots=True)
class Span:
    """The rows `start:stop` of the flattened tokens [T, d] that belong to one slot, or to a block of them."""

    start: int
    stop: int
    adapters: Mapping[str, AdapterView]
    """By full module name."""
    parameters: Tensor
    """Flat parameters of a slot; they make autograd run the backward pass of every module they act in."""
    slots: int = 1
    """How many slots there are, equally many rows each, one after the other."""

    def of(self, rows: Tensor) -> Tensor:
        """The span's own of all rows [T, d]: [n, d] of one slot, [K, n, d] of a block."""
        own = rows[self.start : self.stop]
        return own if self.slots == 1 else own.view(self.slots, -1, rows.shape[-1])


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
        saved = ctx.saved_tensors  # to be read once: where activations are recomputed, torch forgets them at that
        grad_x = torch.zeros_like(saved[0]) if ctx.needs_input_grad[1] else None
        _add_gradients(ctx, saved, grad_y.reshape(-1, grad_y.shape[-1]), grad_x)
        nothing = (None,) * (1 + len(ctx.parts))
        return grad_y, None if grad_x is None else grad_x.view(ctx.x_shape).to(ctx.x_dtype), *nothing


class _FrozenLinear(torch.autograd.Function):
    """A frozen linear module with its adapters: rows [T, d_in] to [T, d_out]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, parts: list[tuple[Span, AdapterView]], *_: Tensor
    ) -> Tensor:
        y = product(x, weight, bias)
        ctx.parts, ctx.weight = parts, weight
        if parts:
            rows = _rows(x, parts)
            inner, masks = _add(y, rows, parts, training=True)
            ctx.save_for_backward(rows, *inner, *(mask for mask in masks if mask is not None))
            ctx.masked = [mask is not None for mask in masks]
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        grad_x = product(grad_y, ctx.weight.t()) if ctx.needs_input_grad[0] else None
        if ctx.parts:
            _add_gradients(ctx, ctx.saved_tensors, grad_y, grad_x)
        return grad_x, *(None,) * (3 + len(ctx.parts))


def _add(
    out: Tensor, rows: Tensor, parts: list[tuple[Span, AdapterView]], *, training: bool
) -> tuple[list[Tensor], list[Tensor | None]]:
    """Add every part to `out` [T, d_out] in place.

    Returns:
        Each part's `x A^T` [n, r], scaled where the slots of a block have different scalings, and its dropout mask.
    """
    inner: list[Tensor] = []
    masks: list[Tensor | None] = []
    for span, view in parts:
        x_k = span.of(rows)
        mask = view.dropout(x_k) if training and view.dropout is not None else None
        h = _product(x_k if mask is None else x_k * mask, view.a.mT)
        scaling = view.scaled(masked=mask is not None)
        if isinstance(scaling, Tensor):
            h.mul_(scaling)
        _accumulate(span.of(out), h, view.bt, _factor(scaling))
        inner.append(h)
        masks.append(mask)
    return inner, masks


def _rows(x: Tensor, parts: list[tuple[Span, AdapterView]]) -> Tensor:
    """The module's input as rows [T, d_in] in the dtype that the adapters compute in."""
    return x.reshape(-1, x.shape[-1]).to(parts[0][1].a.dtype)


def _factor(scaling: float | Tensor) -> float:
    """What products with `x A^T` are still to be multiplied by: it is scaled itself where scalings differ."""
    return 1.0 if isinstance(scaling, Tensor) else scaling


def _product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right`, of matrices or of batches of them."""
    return torch.mm(left, right) if left.dim() == 2 else torch.bmm(left, right)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, scaling: float) -> None:
    """`total += scaling * left @ right`, in the dtype of `total` although the product may be in a lower one."""
    if total.dtype == left.dtype:
        add = total.addmm_ if total.dim() == 2 else total.baddbmm_
        add(left, right, alpha=scaling)
    elif total.is_cuda:  # the product is summed in float32 anyway, and need not be rounded in between
        product = torch.mm if total.dim() == 2 else torch.bmm
        total.add_(product(left, right, out_dtype=total.dtype), alpha=scaling)
    else:
        total.add_(_product(left, right), alpha=scaling)


def _add_gradients(ctx: Any, saved: tuple[Tensor, ...], grad_y: Tensor, grad_x: Tensor | None) -> None:
    """Add every part's gradients to its slot's own, and its share to that of the input [T, d_in]."""
    rows, *others = saved  # the input, each part's `x A^T` [n, r], and the masks of those that have one
    count = len(ctx.parts)
    grad_y = grad_y.to(rows.dtype)
    masks = iter(others[count:])
    for (span, view), h, masked in zip(ctx.parts, others[:count], ctx.masked, strict=True):
        grad_k, x_k = span.of(grad_y), span.of(rows)
        mask = next(masks) if masked else None
        scaling = view.scaled(masked=masked)
        _accumulate(view.grad_bt, h.mT, grad_k, _factor(scaling))
        grad_h = _product(grad_k, view.bt.mT)
        if isinstance(scaling, Tensor) or scaling != 1.0:
            grad_h.mul_(scaling)
        _accumulate(view.grad_a, grad_h.mT, x_k if mask is None else x_k * mask, 1.0)
        if grad_x is None:
            continue
        total = span.of(grad_x)
        if mask is None:
            _accumulate(total, grad_h, view.a, 1.0)
        else:
            total.add_(_product(grad_h, view.a).mul_(mask))


def attach(module: nn.Module, name: str, routing: Routing) -> None:
    """Let the adapters of `routing`'s spans act behind a linear module of the base, under its full name."""
    if type(module) is nn.Linear and "forward" not in vars(module):
        _replace(module, name, routing)
    else:
        _hook(module, name, routing)


def _replace(module: nn.Linear, name: str, routing: Routing) -> None:
    """A bound method, and not a closure over `module`: a copy of the base then computes with its own weights."""

    def forward(linear: nn.Linear, x: Tensor) -> Tensor:
        parts = _parts(name, routing, x)
        rows = x.reshape(-1, x.shape[-1])
        if torch.is_grad_enabled() and (parts or x.requires_grad):
            leaves = (span.parameters for span, _ in parts)
            y = _FrozenLinear.apply(rows, linear.weight, linear.bias, parts, *leaves)  # type: ignore[no-untyped-call]
        else:
            y = product(rows, linear.weight, linear.bias)
            if parts:
                _add(y, _rows(rows, parts), parts, training=False)
        result: Tensor = y.view(*x.shape[:-1], -1)
        return result

    module.forward = MethodType(forward, module)  # type: ignore[method-assign]


def _hook(module: nn.Module, name: str, routing: Routing) -> None:
    """A forward hook leaves the module itself as it was, so quantized and other linear classes work unchanged."""
    is_conv = type(module) is Conv1D

    def hook(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> Tensor:
        x = args[0].to(y.device)  # where the base is split over devices, an input may come from another one
        parts = _parts(name, routing, x)
        if not parts:
            return y
        if not is_conv:  # a quantized product may hand out a view, which must not be written to
            y = y.clone()
        if torch.is_grad_enabled():
            added: Tensor = _AddAdapters.apply(y, x, parts, *(span.parameters for span, _ in parts))  # type: ignore[no-untyped-call]
            return added
        _add(y.view(-1, y.shape[-1]), _rows(x, parts), parts, training=False)
        return y

    module.register_forward_hook(hook)


def _parts(name: str, routing: Routing, x: Tensor) -> list[tuple[Span, AdapterView]]:
    """The adapters that act behind a module in this pass, and where.

    Raises:
        UnpackableError: the module is not given the tokens' rows.
    """
    parts = [(span, view) for span in routing.spans if (view := span.adapters.get(name)) is not None]
    if parts and x.numel() != routing.rows * x.shape[-1]:
        raise UnpackableError(
            f"the base gives {name} {x.numel() // x.shape[-1]} rows where {routing.rows} tokens go in, "
            "so that trials cannot be told apart there; leave it out of lora.target_modules"
        )
    return parts
