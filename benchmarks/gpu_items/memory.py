"""Trials whose memory is predicted, counted, and compared with what torch's allocator handed out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from gpu_items.device import memory_now, on_gpu, out_of_memory, sync

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpu_items.bench import Bench


@dataclass(frozen=True)
class Case:
    """A trial of `rows` x `length` tokens on a base."""

    base: str
    rows: int
    length: int
    r: int
    quantization: str = "none"
    lora: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        quantized = "" if self.quantization == "none" else f"{self.quantization} "
        return f"{self.base} {quantized}r{self.r} {self.rows}x{self.length} {self.note}".strip()

    @property
    def lora_settings(self) -> dict[str, Any]:
        return {"r": self.r, **self.lora}


CHECKPOINTING: dict[str, Any] = {"training": {"gradient_checkpointing": True}, "note": "checkpointing"}
DROPOUT: dict[str, Any] = {"lora": {"lora_dropout": 0.05}, "note": "dropout"}
CASES = (
    Case("1B", 1, 512, 32),
    Case("1B", 1, 128, 256),
    Case("1B", 8, 512, 16),
    Case("1B", 8, 512, 32, **CHECKPOINTING),
    Case("1B", 2, 256, 64, training={"optim": "adamw_8bit"}, note="adamw_8bit"),
    Case("1B", 4, 256, 16, **DROPOUT),
    Case("8B", 1, 512, 32),
    Case("8B", 1, 64, 32),
    Case("8B", 1, 64, 256),
    Case("8B", 2, 512, 16, **CHECKPOINTING),
    Case("8B", 1, 512, 32, "nf4"),
    Case("8B", 1, 256, 16, "nf4", **DROPOUT),
)


def cases(base: str, quantization: str = "none", *, toy: bool) -> dict[str, Case]:
    """By name, which in miniature is that of the full size."""
    chosen = [one for one in CASES if (one.base, one.quantization) == (base, quantization)]
    if not toy:
        return {one.name: one for one in chosen}
    return {one.name: replace(one, length=max(8, one.length // 16), r=min(8, one.r)) for one in chosen}


def measured(bench: Bench, case: Case) -> dict:
    """What the product counts and says, and what the allocator handed out: in a step alone, and in one of four."""
    engine = bench.engine
    config = bench.trial(case.length, case.rows, case.lora_settings, case.training)
    result: dict[str, Any] = {}
    bench.peer.drop()
    try:
        bench.empty()
        result["base_allocated"] = torch.cuda.memory_allocated() if on_gpu() else 0
        number, bench.number = bench.number, bench.number + 1
        engine.admit(number, config)
        known = engine.memory(number)
        counted = None if known is None else known.measured
        result |= {
            "counted": None if counted is None else counted.peak,
            "terms": None if counted is None else counted.terms,
            "product_says_allocated": None if known is None else known.allocated,
        }
        engine.step()
        result |= _peak_of_a_step(engine, "1")
        for _ in range(3):
            bench.add(config)
        engine.step()
        result |= _peak_of_a_step(engine, "4")
    except Exception as error:
        if not out_of_memory(error):
            raise
        result |= {"does_not_fit": True, "detail": " ".join(str(error).split())[:200]}
    bench.empty()
    return result


def _peak_of_a_step(engine: Any, suffix: str) -> dict:
    sync()
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    engine.step()
    sync()
    return {f"{name}_{suffix}": value for name, value in memory_now(exact=True).items()} if on_gpu() else {}
