"""Proof at a trial's first step that every adapter learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.common.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor


def require_gradients(of_b: Mapping[str, Tensor | None]) -> None:
    """See that every B has a gradient at the first step, where it is exactly zero only if the module is cut off.

    Args:
        of_b: The gradient of each adapted module's B, by the module's name.

    Raises:
        TrainingError: an adapter gets none, and so would not train.
    """
    dead = [name for name, gradient in of_b.items() if gradient is None or not gradient.any()]
    if dead:
        raise TrainingError(
            f"{len(dead)} of {len(of_b)} adapted modules get no gradient (first: {dead[0]}), so "
            "they would not train; adapt other modules, or check that the base calls this one"
        )
