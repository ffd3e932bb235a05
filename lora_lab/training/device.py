"""A device's memory (how much is free, when it ran out, giving it back), and how many CPUs torch may use."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import joblib
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OUT_OF_MEMORY = (
    "can't allocate memory",  # torch on a CPU
    "CUDA error: out of memory",  # CUDA itself, for what is not torch's: kernels that are loaded when first used
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # what cuBLAS says when there is no room for a handle
)
"""How errors say that an allocation failed, where they have no class of their own."""
ALLOCATOR_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


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


def shortage_of_memory(action: Callable[[], object]) -> str | None:
    """Do something that may run out of memory, and give back what it had taken by then if it does.

    Returns:
        What torch said in that case, in one line; None where memory sufficed.
    """
    with memory_may_run_out() as shortage:
        action()
    if shortage.reason is not None:
        free_cached_memory()
    return shortage.reason


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU; also those of CUDA and cuBLAS, which torch does not make."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def device_bytes(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a CUDA device; None for a CPU."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def free_cached_memory() -> None:
    """Give memory that nobody uses back to the device: what the allocator keeps for later, and what cycles hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def use_granted_cpus() -> None:
    """Compute with no more threads than the CPUs that this process is granted, unless the user has set their number.

    torch knows which cores a process may run on, but not how much time a container has on them (cgroups). With more
    threads than that, all of them are stopped for most of the time, and wait for each other for the rest of it.
    """
    granted = joblib.cpu_count()
    if "OMP_NUM_THREADS" not in os.environ and granted < torch.get_num_threads():
        torch.set_num_threads(granted)


def let_segments_expand() -> None:
    """Let torch's CUDA allocator grow its segments instead of adding new ones, unless the user has set it up.

    The shapes of a pack change every few steps, and segments of fixed sizes would be left with gaps that no later
    tensor fits into. It works only before CUDA is used for the first time.
    """
    if not torch.cuda.is_initialized() and not any(name in os.environ for name in ALLOCATOR_SETTINGS):
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
