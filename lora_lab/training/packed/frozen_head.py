"""The token losses behind a frozen head; their gradient is computed with them, so that no logits are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lora_lab.training.packed.frozen import product

if TYPE_CHECKING:
    from collections.abc import Sequence

ROWS_AT_ONCE = 512
"""Rows of logits at a time: enough for a GPU to be busy, few enough for a CPU's cache where the vocabulary is small."""


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 -- autograd passes them by position
        ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Linear, chunk: int, divisors: Tensor | None
    ) -> Tensor:
        nll, grads, start = [], [], 0
        for rows, labels in zip(hidden.split(chunk), targets.split(chunk), strict=True):
            logits = head(rows)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if ctx.needs_input_grad[0]:
                losses, grad_logits = _with_gradient(logits, labels)
                if divisors is not None:
                    grad_logits.div_(divisors[start : start + len(labels)].unsqueeze(1))
                grads.append(product(grad_logits.to(rows.dtype), head.weight.t()))
            else:
                losses = functional.cross_entropy(logits, labels, reduction="none")
            nll.append(losses)
            start += len(labels)
        ctx.divisors = divisors
        ctx.save_for_backward(*([torch.cat(grads)] if grads else []))
        return torch.cat(nll)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor | None, ...]:
        [grad] = ctx.saved_tensors
        rest = grad_nll if ctx.divisors is None else grad_nll * ctx.divisors  # 1 where losses are divided as was said
        return torch.mul(grad, rest.unsqueeze(1), out=torch.empty_like(grad)), *(None,) * 4


def _with_gradient(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy [n] of logits [n, vocabulary], and its gradient."""
    places = labels.unsqueeze(1)
    losses = logits.amax(1).sub_(logits.gather(1, places).squeeze(1))
    chances = torch.softmax(logits, 1)
    # log(sum(exp(logits - largest))), from the largest chance: it is at least 1 / vocabulary and cannot underflow
    losses.sub_(chances.amax(1).log_())
    return losses, chances.scatter_add_(1, places, chances.new_full((1, 1), -1.0).expand_as(places))


def head_loss(
    hidden: Tensor,
    targets: Tensor,
    head: nn.Linear,
    logits_at_once: int,
    denominators: Sequence[tuple[int, int]] | Tensor = (),
) -> Tensor:
    """[n]: cross-entropy of every target under a frozen head, in float32 (float64 for a float64 base).

    In half precision the gradient of the logits is divided by the denominator of the loss before it is rounded, as
    autograd does it. Divided afterwards it would be rounded twice, and where 1 / denominator is close to a power of
    two, all gradients of a trial would be off by that distance: 0.2% at 511 labels.

    Args:
        hidden: [n, d].
        targets: [n] int64, on the same device.
        head: Adapters do not act in it.
        logits_at_once: Rows x vocabulary that may be held at the same time.
        denominators: Pairs (targets, what their losses are going to be divided by) that follow each other. Gradients
            are right for any; they are accurate to the dtype where the pairs are. Or the divisor [n] of every target.
    """
    chunk = max(1, min(ROWS_AT_ONCE, logits_at_once // head.weight.shape[0]))
    divisors = None
    if len(denominators) and torch.finfo(hidden.dtype).bits < 32:
        like = hidden.new_empty(0, dtype=torch.float32)
        if isinstance(denominators, Tensor):
            divisors = denominators.to(like.dtype)
        else:
            divisors = torch.cat([like.new_full((count,), denominator) for count, denominator in denominators])
    nll: Tensor = _HeadLoss.apply(hidden, targets, head, chunk, divisors)  # type: ignore[no-untyped-call]
    return nll
