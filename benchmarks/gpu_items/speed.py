"""What packs cost at the shapes of real models, beside `Trainer` + `peft`; attention is Flash but for "cuDNN on".

An item's cells stand in the order of their worth: what finds no time is at the end.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from gpu_items.bench import Bench, Shape, lazily
from gpu_items.cells import Cell, Context
from gpu_items.device import attention_by, on_gpu
from gpu_items.memory import cases, measured
from gpu_items.parts import graph, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Cells:
    """The cells of one base, in the order of their worth."""

    def __init__(self, context: Context, base: str, quantization: str = "none") -> None:
        self.toy, self._base, self._quantization = context.toy, base, quantization
        self._get, load = lazily(lambda: Bench(context, "toy" if context.toy else base, quantization))
        self.list = [load]

    def lengths(self, *lengths: int) -> list[int]:
        return [max(8, length // 8) for length in lengths][:2] if self.toy else list(lengths)

    def add(
        self,
        name: str,
        measure: Callable[[Bench], dict],
        needs_s: float = 4.0,
        limit_s: float = 40.0,
        *,
        cudnn: bool = False,
    ) -> None:
        self.list.append(Cell(name, lambda: attention_by(lambda: measure(self._get()), cudnn=cudnn), needs_s, limit_s))

    def trainer(self, name: str, shape: Shape, warm: int = 3, timed: int = 6, **more: Any) -> None:
        self.add(name, lambda bench: bench.trainer(shape, warm, timed), 5, 60, **more)

    def pack(self, name: str, shape: Shape, needs_s: float = 4.0, limit_s: float = 40.0, **more: Any) -> None:
        self.add(name, lambda bench: bench.pack(shape), needs_s, limit_s, **more)

    def packs(self, length: int, *kinds: tuple[str, int], needs_s: float = 4.0) -> None:
        """Packs of one row of this length, by mode and size."""
        for mode, count in kinds:
            self.pack(f"T{length} {mode} K{count}", Shape(length, count, mode), needs_s)

    def graph(self, name: str, shape: Shape) -> None:
        self.add(name, lambda bench: graph(bench, shape), 5, 60)

    def profile(self, shape: Shape) -> None:
        self.add(f"profile T{shape.length} {shape.mode} K{shape.count}", lambda bench: profile(bench, shape), 5, 60)

    def memory(self) -> None:
        for name, case in cases(self._base, self._quantization, toy=self.toy).items():
            self.add(f"memory {name}", partial(measured, case=case), 6, 60)


def speed_8b_item(context: Context) -> list[Cell]:
    cells = Cells(context, "8B")
    toy = cells.toy
    few, many = (2, 3) if toy else (8, 16)
    large = on_gpu() and torch.cuda.get_device_properties(0).total_memory > 100e9
    first, *others = cells.lengths(64, 512, 256, 128, 1024)
    cells.trainer(f"T{first} Trainer", Shape(first))
    cells.packs(first, ("loop", 1), ("loop", few), ("blocks", few), ("captured", few))
    cells.graph(f"T{first} blocks + graph K{few}", Shape(first, few, "blocks"))
    cells.packs(first, ("loop", many), ("blocks", many), ("captured", many))
    cells.graph(f"T{first} blocks + graph K{many}", Shape(first, many, "blocks"))
    cells.graph(f"T{first} loop + graph K{few}", Shape(first, few))
    cells.graph(f"T{first} graph K1", Shape(first))
    cells.add(f"T{first} bare loop of PEFT", lambda bench: bench.peer.bare(bench.trial(first)))
    for length in others:
        cells.trainer(f"T{length} Trainer", Shape(length))
        cells.packs(length, ("loop", 1), ("loop", few), ("blocks", few), ("captured", few))
        if length <= 512 or large:
            cells.packs(length, ("loop", many), ("blocks", many), needs_s=6)
    for count, mode in ((1, "loop"), (few, "loop"), (few, "blocks")):
        cells.profile(Shape(first, count, mode))
    cells.add(f"profile T{first} bare loop of PEFT", lambda bench: bench.peer.profile(bench.trial(first)), 5, 60)
    cells.memory()
    _many_tokens(cells, 16 if toy else 512, large=large)
    _variants(cells, 16 if toy else 128, few)
    for length in (first, 16 if toy else 512):
        cells.pack(f"T{length} blocks K{few}, cuDNN on", Shape(length, few, "blocks"), 6, cudnn=True)
        cells.trainer(f"T{length} Trainer, cuDNN on", Shape(length), cudnn=True)
    high = {"r": 8 if toy else 256}
    cells.pack(f"T{first} blocks K4 r256", Shape(first, 4, "blocks", lora=high), 6)
    cells.trainer(f"T{first} Trainer r256", Shape(first, lora=high), 2, 4)
    return cells.list


def _many_tokens(cells: Cells, n: int, *, large: bool) -> None:
    """Where the base's own products are the limit."""
    r16: Mapping[str, Any] = {"r": 16}
    cells.pack("8k tokens: 4 x 4x512 r16 loop", Shape(n, 4, "loop", 4, r16), 8, 60)
    cells.pack("8k tokens: 4 x 4x512 r16 blocks", Shape(n, 4, "blocks", 4, r16), 8, 60)
    cells.pack("8k tokens: 1 x 16x512 r16", Shape(n, 1, "loop", 16, r16), 8, 60)
    cells.pack("8k tokens: 1 x 2x4096 r16", Shape(8 * n, 1, "loop", 2, r16), 8, 60)
    cells.trainer("4k tokens: Trainer 8x512 r16", Shape(n, rows=8, lora=r16), 2, 3)
    cells.pack("4k tokens: 1 x 8x512 r16", Shape(n, 1, "loop", 8, r16), 6, 60)
    recomputed = Shape(n, 4, "blocks", 8, r16, {"gradient_checkpointing": True})
    cells.pack("16k tokens: 4 x 8x512 r16 checkpointing, blocks", recomputed, 10, 60)
    if large:
        cells.pack("16k tokens: 4 x 8x512 r16 blocks", Shape(n, 4, "blocks", 8, r16), 10, 60)


def _variants(cells: Cells, length: int, few: int) -> None:
    cells.graph(f"T{length} blocks + graph K{few}", Shape(length, few, "blocks"))
    if not cells.toy:
        cells.packs(64, ("blocks", 32), needs_s=6)
        cells.graph("T512 blocks + graph K8", Shape(512, 8, "blocks"))
    ranks = (2, 4) if cells.toy else (4, 256, 16, 64)
    for mode in ("loop", "blocks"):
        cells.pack(f"T{length} ranks mixed {mode} K{few}", Shape(length, few, mode, ranks=ranks), 6)
        cells.pack(f"T{length} dropout {mode} K{few}", Shape(length, few, mode, lora={"lora_dropout": 0.05}), 6)
    recomputed = Shape(length, few, "blocks", training={"gradient_checkpointing": True})
    cells.pack(f"T{length} checkpointing blocks K{few}", recomputed, 6)


def speed_nf4_item(context: Context) -> list[Cell]:
    cells = Cells(context, "8B", "nf4")
    few = 2 if cells.toy else 8
    lengths = cells.lengths(64, 512)
    for length in lengths:
        cells.trainer(f"T{length} Trainer", Shape(length))
        cells.packs(length, ("loop", 1), ("loop", few), ("blocks", few), ("captured", few))
    cells.memory()
    cells.profile(Shape(lengths[0], few, "blocks"))
    cells.graph(f"T{lengths[0]} blocks + graph K{few}", Shape(lengths[0], few, "blocks"))
    if not cells.toy:
        cells.trainer("T256 Trainer", Shape(256))
        for length, count in ((256, 4), (64, 16), (512, 4)):
            cells.packs(length, ("blocks", count), needs_s=5)
    return cells.list


def speed_1b_item(context: Context) -> list[Cell]:
    cells = Cells(context, "1B")
    few, many = (2, 3) if cells.toy else (8, 32)
    lengths = cells.lengths(64, 256, 1024)
    for length in lengths:
        cells.trainer(f"T{length} Trainer", Shape(length))
        cells.packs(length, ("loop", 1), ("loop", few), ("blocks", few), ("captured", few), ("blocks", many))
    for length, count in ((lengths[0], many), (lengths[0], few), (lengths[1], few)):
        cells.graph(f"T{length} blocks + graph K{count}", Shape(length, count, "blocks"))
    for length in lengths[:2]:
        cells.packs(length, ("loop", many), needs_s=6)
    cells.profile(Shape(lengths[0], many, "blocks"))
    n = 16 if cells.toy else 1024
    cells.pack("8k tokens: 8 x 1x1024 r32 blocks", Shape(n, 8, "blocks"), 5)
    cells.pack("8k tokens: 1 x 8x1024 r32", Shape(n, rows=8), 5)
    cells.trainer("8k tokens: Trainer 8x1024 r32", Shape(n, rows=8), 2, 4)
    return cells.list
