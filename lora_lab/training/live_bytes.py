"""Memory of a training step, counted: the bytes of all tensor storages that are alive at the same time.

The count is the same on every run on a CPU, where no allocator keeps books, and for tensors without data
(`prediction`). A trial's figure is that of its own step, alone: its share of a pack's memory would depend on its
neighbors.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from torch import nn

ALLOCATION_BYTES = 512
"""CUDA's caching allocator hands out multiples of this; counted on a CPU too, so that figures compare."""
TERMS = (
    "base",
    "quantization",
    "adapters",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "dequantization",
    "rounding",
)
"""What storages are counted as. `quantization`: the constants of a quantized base; `dequantization`: its weights in
full precision, while a product needs them; `rounding`: what the allocator adds to sizes."""
ROUNDING = TERMS.index("rounding")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensor storages while it is entered; `peak` is the most there were.

    Args:
        resident: The base's weights, which are there before; `count` adds other things that are.
        vocabulary: Tensors of this last dimension count as logits.
        keep_history: Also keep the bytes of every term after every allocation, in `history`.
        between: Called before every operation; what it raises ends the counting.
    """

    def __init__(
        self,
        resident: Iterable[Tensor] = (),
        *,
        vocabulary: int | None = None,
        keep_history: bool = False,
        between: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[int, weakref.finalize[Any, Any]] = {}
        """What is called at the end of each storage that is counted."""
        self._live = [0] * len(TERMS)
        self._total = 0
        self._vocabulary, self._between = vocabulary, between
        self.peak = 0
        self.resident = 0
        """What was there when the counting began."""
        self.resident_rounding = 0
        """The part of it that the allocator adds to sizes."""
        self._at_peak: tuple[int, ...] = tuple(self._live)
        self._term = "activations"
        self.history: list[tuple[int, ...]] | None = [] if keep_history else None
        """Bytes by term, in the order of `TERMS`."""
        self.begun: dict[str, int] = {}
        """Where in the history each term began to be what new storages count as."""
        self.count("base", resident)

    @property
    def terms(self) -> dict[str, int]:
        """What the peak consists of."""
        return dict(zip(TERMS, self._at_peak, strict=True))

    def begin(self, term: str) -> None:
        """From now on, new storages that are nothing else by their own count as `term`, not as activations."""
        self._term = term
        self.begun[term] = len(self.history or ())

    def count(self, term: str, tensors: Iterable[Tensor]) -> None:
        """Count tensors that are there already; a storage that was counted before stays what it was."""
        for tensor in tensors:
            self._add(tensor, term)

    def __torch_dispatch__(
        self, operation: Any, _: Any, arguments: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None
    ) -> Any:
        if self._between is not None:
            self._between()
        result = operation(*arguments, **(keywords or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                self._add(value, None, operation, arguments)
        hidden = workspace(operation, arguments, result)
        if hidden is not None:
            self._note(*hidden)
        return result

    def __enter__(self) -> Self:
        super().__enter__()  # type: ignore[no-untyped-call]
        self.resident, self.resident_rounding = self._total, self._live[ROUNDING]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for finalizer in self._known.values():  # else the base's weights would keep this count for as long as they live
            finalizer.detach()
        self._known.clear()

    def _add(self, tensor: Tensor, term: str | None, operation: Any = None, arguments: Sequence[Any] = ()) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata  # noqa: SLF001 -- the identity of a storage has no public name
        if key in self._known:
            return
        size = storage.nbytes()
        padding = -size % ALLOCATION_BYTES
        term = term or self._term_of(tensor, operation, arguments)
        index = TERMS.index(term)
        self._live[index] += size
        self._live[ROUNDING] += padding
        self._total += size + padding
        self._note()
        self._known[key] = weakref.finalize(storage, self._forget, key, index, size, padding)

    def _term_of(self, tensor: Tensor, operation: Any, arguments: Sequence[Any]) -> str:
        if tensor.is_floating_point() and tensor.ndim and tensor.shape[-1] == self._vocabulary:
            return "logits"
        if "dequantize" in str(operation) or any(
            isinstance(value, Tensor) and value.dtype == torch.int8 for value in arguments
        ):
            return "dequantization"
        return self._term

    def _note(self, term: str = "activations", more: int = 0) -> None:
        """Look whether this is the peak; `more` bytes of `term` were there for the length of an operation."""
        is_peak = self._total + more > self.peak
        if not is_peak and self.history is None:
            return
        live = self._live.copy()
        live[TERMS.index(term)] += more
        terms = tuple(live)
        if is_peak:
            self.peak, self._at_peak = self._total + more, terms
        if self.history is not None:
            self.history.append(terms)

    def _forget(self, key: int, index: int, size: int, padding: int) -> None:
        self._known.pop(key, None)
        self._live[index] -= size
        self._live[ROUNDING] -= padding
        self._total -= size + padding


def workspace(operation: Any, arguments: Sequence[Any], result: Any) -> tuple[str, int] | None:
    """What an operation holds beside its inputs and outputs, inside, where a dispatch mode does not see it.

    Returns:
        The term and the bytes, None for an operation that is not known to need any.
    """
    match str(operation):
        case "bitsandbytes.gemm_4bit.default":  # beyond a few rows it dequantizes the weight and multiplies
            rows, columns = arguments[2]
            return "dequantization", rows * columns * arguments[0].element_size()
        case "aten._scaled_dot_product_flash_attention_backward.default":
            return "activations", _flash_backward_bytes(arguments[1], result[1])
    return None


def _flash_backward_bytes(query: Tensor, grad_key: Tensor) -> int:
    """FlashAttention-2 sums dQ in float32, padded, and dK and dV per query head before it adds up groups of heads."""
    batch, heads, length, width = query.shape
    padded = -(-length // 128) * 128
    sums = 4 * batch * heads * padded * (-(-width // 32) * 32 + 1)
    expanded = 2 * batch * heads * length * width * query.element_size() if grad_key.shape[1] < heads else 0
    return sums + expanded


def resident_tensors(model: nn.Module) -> Iterable[Tensor]:
    """The weights and buffers of a model."""
    yield from model.buffers()
    yield from model.parameters()


def quantization_tensors(model: nn.Module) -> Iterator[Tensor]:
    """The constants that belong to quantized weights."""
    for parameter in model.parameters():
        yield from _tensors_in(getattr(parameter, "quant_state", None))
        yield from _tensors_in(getattr(parameter, "SCB", None))
    for module in model.modules():
        yield from _tensors_in(getattr(getattr(module, "state", None), "SCB", None))  # where it is after a first pass


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a bitsandbytes quantization state, whose own state may be quantized once more."""
    if isinstance(value, Tensor):
        yield value
    elif value is not None:
        for name in ("absmax", "code", "offset", "state2"):
            yield from _tensors_in(getattr(value, name, None))
