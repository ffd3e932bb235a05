"""Slots of one shape as one block: one batched product takes the place of one for each of them.

A step of K slots launches K times the adapters' kernels of one. On a GPU that is what its time consists of as long as
the products are small. Slots of equal shapes whose flat buffers are rows of common ones [K, P] need no more launches
than one slot: the adapters of a module are a strided view [K, r, d] of these. Each slot's arithmetic stays its own, and
so do its optimizer, clipping and checkpoints, which see a row; numbers differ by rounding at most, and a slot that
diverges spoils nothing but its own row.
"""

from __future__ import annotations

import os
import time
from functools import cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_lab.common.errors import InputError
from lora_lab.training.device import shortage_of_memory
from lora_lab.training.packed.linear import AdapterView, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

    from lora_lab.training.packed.linear import Adapter
    from lora_lab.training.packed.slot import Slot

SETTING = "LORA_LAB_BLOCKS"
"""Environment variable for tests and benchmarks: `merged` or `single`, whatever is faster."""
CHOICES = ("merged", "single")
ALIGNMENT = 64
"""Elements that a row of a common buffer is padded to a multiple of: fast kernels want aligned rows."""
WORTHWHILE = 1.5
"""How much faster batched products have to be, so that what else a machine is doing does not decide.

On an H200 they are ten times as fast, with few rows and with many. On a CPU they are it with few rows of small bases,
where calling is most of a product; it stays with the loop over slots.
"""
ROWS = (64, 512)
"""Tokens of a slot for which they have to be: few first, where that is tried out soonest."""


class Block:
    """Slots of one shape whose flat buffers are rows of common ones.

    Args:
        slots: Their values move here, one kind of buffer after the other, so that no more than one
            kind is there twice.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.rows: list[Slot | None] = list(slots)
        """None where a slot has left; the next of this shape takes its row."""
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[tuple[int, int], Mapping[str, AdapterView]] = {}
        for name, flat in slots[0].flat.items():
            width = -(-len(flat) // ALIGNMENT) * ALIGNMENT
            buffer = torch.zeros(len(slots), width, dtype=flat.dtype, device=flat.device)[:, : len(flat)]
            for row, slot in enumerate(slots):
                slot.move(name, buffer[row])
            self._buffers[name] = buffer

    def take_in(self, slot: Slot) -> None:
        """Let a slot of this shape have a free row."""
        row = self.rows.index(None)
        for name, buffer in self._buffers.items():
            slot.move(name, buffer[row])
        self.rows[row] = slot
        self._views.clear()

    def leave(self, slot: Slot) -> None:
        """Forget a slot; what is in its row is of no meaning any more."""
        self.rows[self.rows.index(slot)] = None
        self._views.clear()

    def adapters(self, start: int, stop: int) -> Mapping[str, AdapterView]:
        """The adapters of the slots in rows `start:stop`, with a dimension [K] in front."""
        if (start, stop) not in self._views:
            self._views[start, stop] = self._view([slot for slot in self.rows[start:stop] if slot], start, stop)
        return self._views[start, stop]

    def _view(self, slots: Sequence[Slot], start: int, stop: int) -> dict[str, AdapterView]:
        first = slots[0]
        computed = self._buffers.get("computed", self._buffers["parameters"])
        values, gradients = first.cut(computed[start:stop]), first.cut(self._buffers["gradient"][start:stop])
        scalings = [slot.config.lora.scaling for slot in slots]
        scaling = _together(scalings, first.parameters)
        gains = [slot.dropout.gain for slot in slots]
        masked = _together([one * gain for one, gain in zip(scalings, gains, strict=True)], first.parameters)
        return {
            name: AdapterView(a, bt, grad_a, grad_bt, scaling, _masks(slots, name), masked)
            for name, a, bt, grad_a, grad_bt in zip(first.adapters, *values, *gradients, strict=True)
        }


def _together(scalings: Sequence[float], like: Tensor) -> float | Tensor:
    """[K, 1, 1] where scalings differ; in float32 at least, as a rounded scaling would be another one."""
    if len(set(scalings)) == 1:
        return scalings[0]
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.tensor(scalings, dtype=dtype).view(-1, 1, 1).to(like.device)


def _masks(slots: Sequence[Slot], name: str) -> Callable[[Tensor], Tensor] | None:
    """Each slot's own mask behind a module, drawn by itself."""
    own = [draw for slot in slots if (draw := slot.adapters[name].dropout) is not None]
    return partial(_drawn, own) if own else None


def _drawn(draw: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """[K, n, d]: the masks of K slots for their inputs."""
    return torch.stack([one(rows) for one, rows in zip(draw, x, strict=True)])


class Blocks:
    """Which slots of a pack stand in which block."""

    def __init__(self) -> None:
        self._blocks: dict[Hashable, Block] = {}
        self._places: dict[Adapter, tuple[Block, int]] = {}
        self._arranged: tuple[tuple[Slot, ...], str | None] | None = None
        """The pack that was arranged last, and what the setting said."""
        self._order: list[Slot] = []

    def arrange(self, pack: Iterable[Slot]) -> list[Slot]:
        """Let the slots of equal shapes in a pack be blocks, where that pays.

        Returns:
            The slots in the order in which they have to stand in a batch: members of a block side by side.
        """
        slots, setting = tuple(pack), os.environ.get(SETTING)
        if self._arranged != (slots, setting):
            self._order = self._order_of(slots, setting)
            self._arranged = slots, setting
        return self._order

    def _order_of(self, pack: Sequence[Slot], setting: str | None) -> list[Slot]:
        groups: dict[Hashable, list[Slot]] = {}
        for slot in pack:
            groups.setdefault(slot.block_shape or slot, []).append(slot)
        alike = {shape: slots for shape, slots in groups.items() if len(slots) > 1 and _merges(slots[0], setting)}
        for shape in self._blocks.keys() - alike.keys():
            self._dissolve(shape, pack)
        for shape, slots in alike.items():
            self._settle(shape, slots)
        self._places = {
            slot: (block, row) for block in self._blocks.values() for row, slot in enumerate(block.rows) if slot
        }
        if not self._places:
            return list(pack)
        return [slot for slots in groups.values() for slot in sorted(slots, key=self._row)]

    def _row(self, slot: Slot) -> int:
        return self._places[slot][1] if slot in self._places else -1

    def _dissolve(self, shape: Hashable, pack: Sequence[Slot]) -> None:
        """Give the slots of a block memory of their own: a view of one row would keep the memory of all rows."""
        self._places.clear()
        for slot in self._blocks.pop(shape).rows:
            if slot is not None and slot in pack:
                shortage_of_memory(partial(Block, [slot]))  # without memory it stays where it is

    def _settle(self, shape: Hashable, slots: list[Slot]) -> None:
        """Let these be the slots of the shape's block; where memory does not suffice, they stay where they are."""
        here = self._blocks[shape].rows if shape in self._blocks else []
        if set(here) == set(slots):
            return
        if len(here) == len(slots) and set(here) - {None} <= set(slots):
            for slot in slots:
                if slot not in here:
                    self._blocks[shape].take_in(slot)
            return
        self._places.clear()
        self._blocks.pop(shape, None)  # so that its buffers go with the last row that is moved
        shortage_of_memory(partial(self._gather, shape, slots))

    def _gather(self, shape: Hashable, slots: Sequence[Slot]) -> None:
        self._blocks[shape] = Block(slots)

    def leave(self, slot: Slot) -> None:
        """A slot has left the pack; its memory is the next one's, or given back when the pack is arranged again."""
        if slot in self._places:
            self._places.pop(slot)[0].leave(slot)
        self._arranged, self._order = None, []

    def spans(self, slots: Sequence[Adapter | None], sizes: Sequence[int]) -> tuple[Span, ...]:
        """The rows of each slot in a batch; slots of a block that follow each other, equally many rows each, as one.

        Args:
            slots: In the order of the batch; None is the bare base.
            sizes: Rows of each.
        """
        spans, start, index = [], 0, 0
        while index < len(slots):
            slot, size = slots[index], sizes[index]
            count = self._run(slots, sizes, index)
            stop = start + count * size
            if slot is not None:
                spans.append(Span(start, stop, self._adapters(slot, count), slot.parameters, count))
            start, index = stop, index + count
        return tuple(spans)

    def _run(self, slots: Sequence[Adapter | None], sizes: Sequence[int], first: int) -> int:
        """How many slots from `first` on stand in following rows of one block."""
        slot = slots[first]
        if slot is None or slot not in self._places:
            return 1
        (block, row), count = self._places[slot], 1
        following = zip(slots[first + 1 :], sizes[first + 1 :], block.rows[row + 1 :], strict=False)
        for other, size, expected in following:
            if other is None or other is not expected or size != sizes[first]:
                break
            count += 1
        return count

    def _adapters(self, slot: Adapter, count: int) -> Mapping[str, AdapterView]:
        if count == 1:
            return slot.adapters
        block, row = self._places[slot]
        return block.adapters(row, row + count)


def _merges(slot: Slot, setting: str | None) -> bool:
    """Whether slots like this one are to be merged.

    Raises:
        InputError: the environment variable that decides says neither.
    """
    if setting is None:
        view = next(iter(slot.adapters.values()))
        return merging_pays(view.a.device, view.a.dtype, view.a.shape[-1])
    if setting not in CHOICES:
        raise InputError(f"{SETTING}: {setting!r} is neither of {', '.join(CHOICES)}; set one of them, or unset it")
    return setting == "merged"


@cache
def merging_pays(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether batched products are clearly faster than as many single ones; tried out once per process.

    Args:
        device: Where the base is.
        dtype: That adapters compute in.
        width: Of the base's hidden states.
    """
    return all(_speedup(device, dtype, width, rows) > WORTHWHILE for rows in ROWS)


def _speedup(device: torch.device, dtype: torch.dtype, width: int, rows: int) -> float:
    """How many times the time of batched products that of single ones is, for four slots of so many rows each."""
    slots, r = 4, 8
    x = torch.ones(slots, rows, width, dtype=dtype, device=device)
    a = torch.ones(slots, r, width, dtype=dtype, device=device)
    y = torch.zeros_like(x)

    def single() -> None:
        for k in range(slots):
            y[k].addmm_(torch.mm(x[k], a[k].t()), a[k])

    def merged() -> None:
        y.baddbmm_(torch.bmm(x, a.mT), a)

    times = []
    for products in (single, merged):
        products()
        times.append(min(_seconds(products, device) for _ in range(5)))
    return times[0] / times[1]


def _seconds(action: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(2):
        action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
