"""Arithmetic of a frozen base: the same numbers as autograd's, without what only a trained weight would need.

Modules are recognized by the code that they run: a class whose `forward` is that of Llama's computes what Llama's
computes. About 140 architectures of transformers share these two; all other modules stay as they are.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

if TYPE_CHECKING:
    from collections.abc import Callable

ONEDNN_ROWS = 1024
"""From here on oneDNN's product is the faster one on a CPU (by 15% at 2048 rows); at 64 it is the slower one."""


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`rows @ weight.t() + bias`, outside of any graph.

    Args:
        rows: [n, d_in].
        weight: [d_out, d_in]; may be a transposed view.
        bias: [d_out].
    """
    if rows.dtype == torch.float32 and rows.device.type == "cpu" and len(rows) >= ONEDNN_ROWS and _HAS_ONEDNN:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")  # noqa: SLF001
        return y
    return functional.linear(rows, weight, bias)


_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""The product has no public name; inductor calls it by this one."""


class FrozenNorm(torch.autograd.Function):
    """Root-mean-square norm of x [..., d] with a frozen weight [d]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """The norm; keeps x and one number for each row."""
        inverse = x.square().mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x."""
        x, weight, inverse = ctx.saved_tensors
        grad = grad_y * weight
        along = (grad * x).mean(-1, keepdim=True).mul_(inverse.square())
        return grad.addcmul_(x, along, value=-1).mul_(inverse), None, None


class GatedProduct(torch.autograd.Function):
    """`silu(gate) * up`, of which the two inputs are kept and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        """The product."""
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of both."""
        gate, up = ctx.saved_tensors
        for_gate, for_up = ctx.needs_input_grad
        return (
            torch.ops.aten.silu_backward(grad_y * up, gate) if for_gate else None,
            functional.silu(gate).mul_(grad_y) if for_up else None,
        )


def simplify(model: nn.Module) -> None:
    """Give the norms and gated products of a frozen base their cheaper backward pass, where they are known."""
    for module in model.modules():
        if "forward" in vars(module):  # moved between devices by accelerate, or simplified already
            continue
        if _runs(module, LlamaRMSNorm):
            module.forward = MethodType(_norm, module)
        elif _runs(module, LlamaMLP) and type(module.act_fn) in (nn.SiLU, SiLUActivation):
            module.forward = MethodType(_gated_mlp, module)


def _runs(module: nn.Module, known: type[nn.Module]) -> bool:
    return _code(type(module).forward) == _code(known.forward)


def _code(function: Callable[..., Any]) -> tuple[Any, ...]:
    """What a function does: its instructions, names and constants, without where it stands."""
    code = getattr(function, "__code__", None)
    return (function,) if code is None else (code.co_code, code.co_names, code.co_varnames, code.co_consts)


def _norm(module: Any, x: Tensor) -> Tensor:
    """The module's own forward casts to float32 and back; where there is nothing to cast, the two are the same."""
    float32 = x.dtype == module.weight.dtype == torch.float32
    if float32 and torch.is_grad_enabled() and x.requires_grad and not module.weight.requires_grad:
        y: Tensor = FrozenNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
    else:
        y = type(module).forward(module, x)
    return y


def _gated_mlp(module: Any, x: Tensor) -> Tensor:
    y: Tensor = module.down_proj(GatedProduct.apply(module.gate_proj(x), module.up_proj(x)))  # type: ignore[no-untyped-call]
    return y
