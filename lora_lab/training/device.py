"""A device's memory: how much is free, when it ran out, and giving it back."""

from __future__ import annotations

import torch


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
