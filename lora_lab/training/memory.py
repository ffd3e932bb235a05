"""Memory of a training step, counted: the bytes of all tensor storages that are alive at the same time.

The count is the same on every run on a CPU, where no allocator keeps books. A trial's figure is that of its
own step, alone: its share of a pack's memory would depend on its neighbors.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

ALLOCATION_BYTES = 512
"""CUDA's caching allocator hands out multiples of this; counted on a CPU too, so that figures compare."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensor storages while it is entered; `peak` is the most there were.

    Args:
        resident: Tensors that are there before: weights, gradients, the optimizer's state.
    """

    def __init__(self, resident: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: set[int] = set()
        self._live = 0
        self.peak = 0
        for tensor in resident:
            self._count(tensor)

    def __torch_dispatch__(
        self, operation: Any, _: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(keywords or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 -- the identity of a storage has no public name
        if key in self._known:
            return
        size = -(-storage.nbytes() // ALLOCATION_BYTES) * ALLOCATION_BYTES
        self._known.add(key)
        self._live += size
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def resident_tensors(model: nn.Module) -> Iterable[Tensor]:
    """The weights and buffers of a model, and the constants that belong to quantized weights."""
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        yield from _tensors_in(getattr(parameter, "quant_state", None))
        yield from _tensors_in(getattr(parameter, "SCB", None))


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a bitsandbytes quantization state, whose own state may be quantized once more."""
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for name in ("absmax", "code", "offset", "state2"):
            yield from _tensors_in(getattr(value, name, None))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU (where torch raises a plain RuntimeError)."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def free_cached_memory() -> None:
    """Give memory that the allocator keeps for later back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
