"""What a base keeps of the tokens that it has read while it generates, in bytes: keys and values, windows, states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.cache_utils import Cache

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.training.packed.model import Kept


def kept_bytes(kept: Kept) -> int:
    """Bytes of all storages behind what `PackedModel.next_logits` returned.

    A window is a view of the tokens before it, too, until the next one is read, and so are these bytes.
    """
    storages = {}
    for cache in kept.values():
        for tensor in _tensors(cache):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()  # noqa: SLF001 -- the identity of a storage has no public name
    return sum(storages.values())


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in a cache, in whatever its layers hold them; single numbers are none."""
    if isinstance(value, Tensor):
        if value.dim():
            yield value
    elif isinstance(value, Cache):
        yield from _tensors([vars(layer) for layer in value.layers])
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)
