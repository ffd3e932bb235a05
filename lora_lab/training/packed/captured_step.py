"""Forward and backward pass of a pack as a CUDA graph, where its shapes come again and again.

On a GPU, short steps wait for the host, which needs about ten microseconds for each of thousands of launches. A graph
is launched at once. It reads its batch from buffers that stay where they are, and adds its gradients to those of the
slots. So it holds for one pack in one place, one padded length and one number of label tokens. Of lengths there are few
on a CUDA device (`Padding`); labels are padded here, by such of weight zero.

Everything else (clipping, optimizer, evaluation) and every step of another kind runs as ever: with dropout, whose masks
are drawn by the host; with several examples in a row; with adapters in the head; and on int8 bases.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import masking_utils

from lora_lab.common.errors import InputError
from lora_lab.training.device import free_cached_memory, is_out_of_memory, memory_may_run_out
from lora_lab.training.objective import LanguageModeling
from lora_lab.training.packed.step import add_gradients, losses_of

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator, Sequence

    from lora_lab.training.batch import PackedBatch
    from lora_lab.training.packed.model import Layout, PackedModel
    from lora_lab.training.packed.slot import Slot

LOG = logging.getLogger(__name__)

SETTING = "LORA_LAB_GRAPHS"
"""Environment variable for tests and benchmarks: `on` or `off`."""
COMES_AGAIN = 3
"""Steps of one shape before it is captured."""
MOST_GRAPHS = 16
"""Shapes of one pack that are captured: a graph takes some megabytes beside its activations."""
MOST_TOKENS = 8192
"""Padded tokens of a step up to which the host may be what it waits for."""


@dataclass(slots=True)
class Passes:
    """Both passes over buffers that stay where they are.

    Calling them adds the gradients of what lies in the buffers to the slots'; token losses [n] are in `nll` then.
    """

    layout: Layout
    """Of the buffers; `denominators` is one of them."""
    weights: Tensor
    """[n]: the gradient of the pack's loss with respect to every token loss; 0 for padding."""
    nll: Tensor | None = None
    replay: Callable[[], None] | None = None

    def fill(self, layout: Layout, weights: Tensor) -> None:
        """Take over another batch of the same shapes."""
        for name in ("input_ids", "positions", "targets", "denominators"):
            getattr(self.layout, name).copy_(getattr(layout, name))
        self.weights.copy_(weights)

    def run(self, model: PackedModel) -> None:
        """Launch them one operation after the other."""
        with model.routed(self.layout), one_example_in_a_row():
            nll = model.nll(self.layout)
            torch.autograd.backward(nll, self.weights)
        self.nll = nll.detach()


class CapturedSteps:
    """Adds a pack's gradients, by a graph where its shapes were there before.

    Args:
        model: What computes.
        capture: Records what a function launches, and returns what launches all of it again.
    """

    def __init__(self, model: PackedModel, capture: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        self._model, self._capture = model, capture
        self._seen: Counter[Hashable] = Counter()
        self._passes: dict[Hashable, Passes] = {}
        self._pack: Hashable = None
        """Where the slots of the graphs are, and what of theirs the graphs contain."""
        self._too_large: Hashable = None
        """The pack that had no room beside its graphs."""
        self._fails = False
        self.captured = 0
        """Shapes of steps that were captured so far."""

    def forget(self) -> None:
        """Give the memory of all graphs back; what is of use will be captured again."""
        self._pack = None
        self._seen.clear()
        self._passes.clear()

    def make_room(self) -> bool:
        """Give the memory of all graphs back, for as long as the pack is what it is; returns whether there was any."""
        had_any, self._too_large = bool(self._passes), self._pack
        self._passes.clear()
        return had_any

    def add_gradients(self, slots: Sequence[Slot], batch: PackedBatch) -> Tensor:
        """As `step.add_gradients`: [K] each slot's part of its loss."""
        if self._fails or not (enabled() and self._may_be_captured(slots, batch)):
            self.forget()
            return add_gradients(self._model, slots, self._model.layout(batch, slots))
        pack = tuple(map(_whereabouts, slots))
        if pack != self._pack:
            self.forget()
            self._pack = pack
        layout = self._model.layout(batch, slots)
        wide, weights = _with_more_labels(layout, torch.promote_types(slots[0].parameters.dtype, torch.float32))
        passes = self._passes_of(Passes(wide, weights), slots)
        if passes is None or passes.replay is None:
            return add_gradients(self._model, slots, layout)
        passes.fill(wide, weights)
        passes.replay()
        assert passes.nll is not None
        return torch.stack(losses_of(slots, layout, passes.nll[: len(layout.targets)]))

    def _passes_of(self, wanted: Passes, slots: Sequence[Slot]) -> Passes | None:
        """Captured passes of these shapes, if there are any, or it is time that there were."""
        layout = wanted.layout
        key = (layout.input_ids.shape, len(layout.targets), tuple((span.start, span.stop) for span in layout.body))
        self._seen[key] += 1
        is_worth_it = self._seen[key] > COMES_AGAIN and len(self._passes) < MOST_GRAPHS
        has_room = self._pack != self._too_large
        if key not in self._passes and is_worth_it and has_room and all(map(_begins, slots)):
            self._record(key, wanted, slots)
        return self._passes.get(key)

    def _may_be_captured(self, slots: Sequence[Slot], batch: PackedBatch) -> bool:
        few = batch.input_ids.numel() <= MOST_TOKENS
        return few and batch.position_ids is None and self._model.is_static(slots) and all(map(_is_static, slots))

    def _record(self, key: Hashable, passes: Passes, slots: Sequence[Slot]) -> None:
        """Capture both passes; where that is not possible, none are captured any more, without memory none of the pack.

        What is recorded has to run before, so that libraries make their workspaces; its gradients are taken back.
        """
        free_cached_memory()  # a graph keeps its activations for itself
        reason = None
        with memory_may_run_out() as shortage:
            try:
                passes.replay = self._capture(lambda: passes.run(self._model))
                self._passes[key] = passes
                self.captured += 1
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                reason = " ".join(str(error).split())[:200]
        for slot in slots:
            slot.zero_gradient()
        if shortage.reason is not None:
            self.make_room()
            free_cached_memory()
        if reason is not None:
            self._fails = True
            self.forget()
            LOG.warning("steps are launched one by one, as they cannot be captured as a CUDA graph (%s)", reason)


def cuda_graph(run: Callable[[], None]) -> Callable[[], None]:
    """Record what a function launches on the current device; all graphs of a process share one pool of memory.

    What a graph leaves in the pool is read before another one is launched.
    """
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        run()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=_POOL.handle()):
        run()
    _POOL.add(graph)
    return graph.replay


def again(run: Callable[[], None]) -> Callable[[], None]:
    """Where there are no graphs: run the function itself again, on the same buffers."""
    return run


class GraphPool:
    """The handle of a pool of memory that graphs share, for as long as one of them lives.

    Torch forgets a pool with its last graph, and fails an assertion where a handle of such is used again.

    Args:
        make: Gives the handle of a new pool.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._graphs, self._handle = make, WeakSet[Any](), None

    def handle(self) -> Any:
        """The handle for the next graph."""
        if not self._graphs:
            self._handle = self._make()
        return self._handle

    def add(self, graph: Any) -> None:
        """Note that a graph was captured into the pool."""
        self._graphs.add(graph)


_POOL = GraphPool(torch.cuda.graph_pool_handle)


def enabled() -> bool:
    """Whether steps may be captured.

    Raises:
        InputError: the environment variable that decides says neither.
    """
    setting = os.environ.get(SETTING, "off")
    if setting not in ("on", "off"):
        raise InputError(f"{SETTING}: {setting!r} is neither of on, off; set one of them, or unset it")
    return setting == "on"


@contextmanager
def one_example_in_a_row() -> Iterator[None]:
    """Keep transformers from asking the values of positions whether a row holds several: these rows do not."""
    real = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda _: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = real


def _is_static(slot: Slot) -> bool:
    """Whether a slot's part of a step launches the same whatever its batch holds, on one device."""
    return (
        not slot.dropout.active
        and not slot.config.training.gradient_checkpointing
        and slot.block_shape is not None
        and isinstance(slot.objective, LanguageModeling)
    )


def _begins(slot: Slot) -> bool:
    """Whether this is the first micro-batch of an optimizer step, so that the gradient is zero."""
    return slot.pending is not None and slot.pending.done == 0


def _whereabouts(slot: Slot) -> Hashable:
    """What of a slot a graph contains: where it is, and how its adapter is cut and scaled."""
    places, lora = tuple(tensor.data_ptr() for tensor in slot.flat.values()), slot.config.lora
    return places, lora.r, lora.target_modules, lora.layers, lora.scaling, slot.config.training.optim


def label_places(labels: int) -> int:
    """The label tokens that a graph is made for, of which some may be padding: four counts an octave, from 64 on."""
    step = max(16, (1 << (labels.bit_length() - 1)) // 4)
    return -(-labels // step) * step


def _with_more_labels(layout: Layout, dtype: torch.dtype) -> tuple[Layout, Tensor]:
    """The layout with labels of no weight behind, and the weights of all in the dtype of losses."""
    count = len(layout.targets)
    more = label_places(count) - count
    own = [np.full(labels, denominator, dtype=np.float64) for labels, denominator in layout.denominators]
    divisors = np.concatenate([*own, np.ones(more)])
    weights = np.where(np.arange(len(divisors)) < count, 1.0 / divisors, 0.0)
    place: dict[str, Any] = {"device": layout.targets.device, "dtype": dtype}
    wide = replace(
        layout,
        positions=functional.pad(layout.positions, (0, more)),
        targets=functional.pad(layout.targets, (0, more)),
        denominators=torch.as_tensor(divisors, **place),
    )
    return wide, torch.as_tensor(weights, **place)
