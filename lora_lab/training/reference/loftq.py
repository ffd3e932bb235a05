"""LoftQ (arXiv:2310.08659): a weight as a quantized one plus an adapter that makes up for the error.

The computation is that of `peft.utils.loftq_utils.loftq_init`, which runs on a GPU only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import bitsandbytes
import torch

if TYPE_CHECKING:
    from torch import Tensor


class Approximation(NamedTuple):
    """`weight` [d_out, d_in] is nearly `quantized` [d_out, d_in] + `b` [d_out, r] `a` [r, d_in]."""

    quantized: Tensor
    """What the quantized weight stands for, in the dtype of the weight."""
    a: Tensor
    b: Tensor


@torch.no_grad()
def loftq(weight: Tensor, *, bits: Literal[4, 8], rank: int, iterations: int) -> Approximation:
    """Quantize and fit an adapter to the error, in turn; the adapter is meant for a scaling of 1."""
    exact = rest = weight.float()
    for _ in range(iterations):
        quantized = _quantized(rest, bits)
        a, b = _low_rank(exact - quantized, rank)
        rest = exact - b @ a
    return Approximation(quantized.to(weight.dtype), a, b)


def _quantized(weight: Tensor, bits: Literal[4, 8]) -> Tensor:
    functional = bitsandbytes.functional
    if bits == 4:
        packed, state = functional.quantize_4bit(weight, compress_statistics=False, quant_type="nf4")
        restored: Tensor = functional.dequantize_4bit(packed, state)
    else:
        rows, scales, _ = functional.int8_vectorwise_quant(weight.half())
        restored = functional.int8_vectorwise_dequant(rows, scales)
    return restored


def _low_rank(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    return roots[:, None] * right[:rank], left[:, :rank] * roots
