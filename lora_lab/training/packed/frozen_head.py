"""The token losses behind a frozen head; their gradient is computed with them, so that no logits are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_lab.training.packed.frozen import product

ROWS_AT_ONCE = 512
"""Rows of logits at a time: enough for a GPU to be busy, few enough for a CPU's cache where the vocabulary is small."""


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Linear, chunk: int) -> Tensor:
        nll, grads = [], []
        for rows, labels in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = head(rows)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if ctx.needs_input_grad[0]:
                losses, grad_logits = _with_gradient(logits, labels)
                grads.append(product(grad_logits.to(rows.dtype), head.weight.t()))
            else:
                losses = functional.cross_entropy(logits, labels, reduction="none")
            nll.append(losses)
        ctx.save_for_backward(*([torch.cat(grads)] if grads else []))
        return torch.cat(nll)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        [grad] = ctx.saved_tensors
        return grad * grad_nll.unsqueeze(1).to(grad.dtype), None, None, None


def _with_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy [n] of logits [n, vocabulary], and its gradient."""
    places = labels.unsqueeze(1)
    losses = logits.amax(1).sub_(logits.gather(1, places).squeeze(1))
    chances = torch.softmax(logits, 1)
    # log(sum(exp(logits - largest))), from the largest chance: it is at least 1 / vocabulary and cannot underflow
    losses.sub_(chances.amax(1).log_())
    return losses, chances.scatter_add_(1, places, chances.new_full((1, 1), -1.0).expand_as(places))


def head_loss(hidden: Tensor, targets: Tensor, head: nn.Linear, logits_at_once: int) -> Tensor:
    """[n]: cross-entropy of every target under a frozen head, in float32 (float64 for a float64 base).

    Args:
        hidden: [n, d].
        targets: [n] int64, on the same device.
        head: Adapters do not act in it.
        logits_at_once: Rows x vocabulary that may be held at the same time.
    """
    chunk = max(1, min(ROWS_AT_ONCE, logits_at_once // head.weight.shape[0]))
    nll: Tensor = _HeadLoss.apply(hidden, targets, head, chunk)  # type: ignore[no-untyped-call]
    return nll
