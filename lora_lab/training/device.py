"""A device's memory: how much is free, when it ran out, and giving it back."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Shortage:
    """Whether memory ran out in a block of code (`memory_may_run_out`)."""

    reason: str | None = None
    """What torch said when it did, in one line."""


@contextmanager
def memory_may_run_out() -> Iterator[Shortage]:
    """End a block, instead of the program, when memory runs out in it; what it yields says so afterwards.

    What is to be done then (`free_cached_memory` first) belongs behind the block: in an `except` clause, the error
    still holds all tensors of the failed attempt.
    """
    shortage = Shortage()
    try:
        yield shortage
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        shortage.reason = " ".join(str(error).split())[:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU (where torch raises a plain RuntimeError)."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def device_bytes(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a CUDA device; None for a CPU."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def free_cached_memory() -> None:
    """Give memory that the allocator keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
