"""One large base of random weights, with packs of adapters on it and `Trainer` + `peft` beside them."""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from gpu_items.bases import Tokens, cheap_weights, make_base
from gpu_items.cells import Cell
from gpu_items.device import free_all, memory_now, on_gpu, out_of_memory, sync
from gpu_items.peer import Peer
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import LoraSettings, TrainingSettings, TrialConfig
from lora_lab.study.targets import resolve_targets
from lora_lab.training import packed_engine
from lora_lab.training.packed import captured_step
from lora_lab.training.packed.blocks import SETTING
from lora_lab.training.packed.captured_step import CapturedSteps, again, cuda_graph
from lora_lab.training.packed_engine import PackedEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpu_items.cells import Context
    from lora_lab.training.packed.slot import Slot


@dataclass(frozen=True)
class Shape:
    """What a pack consists of: trials of `rows` x `length` tokens, equal but for their seeds and `ranks`."""

    length: int
    count: int = 1
    mode: str = "loop"
    """`loop` computes slot after slot, `blocks` lets slots of one shape be one block; `captured`, in a CUDA graph."""
    rows: int = 1
    lora: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        """Per trial and step."""
        return self.rows * self.length


class Bench:
    """A base with an engine; adapters' weights are drawn on the device, and nothing is counted before timed steps."""

    def __init__(self, context: Context, shape: str, quantization: str = "none") -> None:
        begun = time.perf_counter()
        packed_engine.initial_weights = cheap_weights
        self.base, self._settings = make_base(shape, quantization)
        sync()
        self.loaded_s = time.perf_counter() - begun
        self.tokens = Tokens(self.base.model.config.vocab_size)
        self.peer = Peer(self.base, self.tokens, context.scratch)  # before the engine hooks the modules
        self.engine = PackedEngine(
            self.base, self.tokens, context.scratch / f"bench-{shape}-{quantization}-{os.getpid()}"
        )
        self.engine._probe.predict = lambda *_: None
        self.make_room = self.engine._make_room
        self.engine._make_room = self.no_room
        self.number = 0

    @staticmethod
    def no_room(reason: str) -> Any:
        """A pack that does not fit is told as such, instead of being made smaller."""
        raise torch.OutOfMemoryError(reason)

    def trial(
        self,
        length: int,
        rows: int = 1,
        lora: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
    ) -> TrialConfig:
        settings = {
            "per_device_train_batch_size": rows,
            "max_steps": 100000,
            "eval_steps": 100000,
            "learning_rate": 1e-5,
            "logging_steps": 1,
        }
        return TrialConfig(
            model=self._settings,
            data=DataSettings(train="random", max_length=length),
            training=TrainingSettings(**settings | dict(training or {})),
            lora=LoraSettings(**{"r": 32} | dict(lora or {})),
        )

    def trials(self, shape: Shape) -> list[TrialConfig]:
        ranks = [{"r": shape.ranks[i % len(shape.ranks)]} if shape.ranks else {} for i in range(shape.count)]
        return [
            self.trial(shape.length, shape.rows, {**shape.lora, **rank}, {"seed": seed, **shape.training})
            for seed, rank in enumerate(ranks)
        ]

    def empty(self) -> None:
        for number in self.engine.active:
            self.engine.discard(number)
        self.engine.set_aside.clear()
        self.engine._steps = CapturedSteps(self.engine._model, cuda_graph if on_gpu() else again)
        free_all()

    def add(self, config: TrialConfig) -> None:
        """Give a trial a slot without the memory probe of `admit`."""
        self.engine._slots[self.number] = self.engine._new_slot(self.number, config)
        self.number += 1

    def fill(self, shape: Shape) -> int:
        """Start a pack; returns how many of its slots stand in blocks."""
        self.empty()
        for config in self.trials(shape):
            self.add(config)
        os.environ[SETTING] = "single" if shape.mode == "loop" else "merged"
        os.environ[captured_step.SETTING] = "on" if shape.mode == "captured" else "off"
        slots = self.slots
        spans = self.engine._model.blocks.spans(slots, [1] * len(slots))
        gc.collect()
        return sum(span.slots for span in spans if span.slots > 1)

    @property
    def slots(self) -> list[Slot]:
        """The pack, in the order in which it stands in a batch."""
        return self.engine._model.blocks.arrange(self.engine._slots.values())

    def pack(self, shape: Shape) -> dict:
        """Milliseconds of the steps of a pack."""
        result = {"T": shape.tokens, "rows": shape.rows, "length": shape.length, "K": shape.count, "mode": shape.mode}
        try:
            merged = self.fill(shape)
            if shape.mode != "loop":
                result["in_blocks"] = merged
            result |= self.steps(warm=6 if shape.mode == "captured" else 2)
            if shape.mode == "captured":
                result["graphs"] = self.engine._steps.captured
        except Exception as error:
            if not out_of_memory(error):
                raise
            result |= {"does_not_fit": True, "detail": " ".join(str(error).split())[:200]}
        if "ms_step" in result:
            flops = sum(self.flops(config, shape.tokens) for config in self.trials(shape))
            result |= {
                "ms_trial": result["ms_step"] / shape.count,
                "tokens_s": 1000 * shape.count * shape.tokens / result["ms_step"],
                "tflops": flops / result["ms_step"] / 1e9,
            }
        self.empty()
        return result

    def steps(self, warm: int = 2, at_most: int = 10, seconds: float = 1.6) -> dict:
        """Milliseconds of a step of the engine; as many steps as fit."""
        ends: Counter = Counter()

        def timed(count: int) -> float:
            sync()
            begun = time.perf_counter()
            for _ in range(count):
                ends.update(type(event).__name__ for event in self.engine.step())
            sync()
            return time.perf_counter() - begun

        timed(warm)
        count = max(2, min(at_most, int(seconds / timed(1))))
        if on_gpu():
            torch.cuda.reset_peak_memory_stats()
        halves = [timed(part) / part for part in (count // 2, count - count // 2)]
        result = {"ms_step": 1000 * min(halves), "ms_halves": [1000 * half for half in halves], "steps": count}
        result |= memory_now() if on_gpu() else {}
        del ends["Logged"]
        return result | ({"ended": dict(ends)} if ends else {})

    def flops(self, config: TrialConfig, tokens: int) -> float:
        """4 per token and parameter of the base, 6 per parameter of the adapter."""
        linears = self.base.linears
        shapes = (linears.shapes[name] for name in resolve_targets(linears, config.lora))
        adapter = sum(config.lora.r * (shape.d_in + shape.d_out) for shape in shapes)
        return tokens * (4.0 * linears.total_parameters + 6.0 * adapter)

    def trainer(self, shape: Shape, warm: int = 3, timed: int = 6) -> dict:
        """Milliseconds of a step of `Trainer` + `peft` on one trial of such a pack."""
        config = self.trial(shape.length, shape.rows, shape.lora, shape.training)
        result = {"T": shape.tokens, "rows": shape.rows, "length": shape.length, "mode": "Trainer"}
        result |= self.peer.steps(config, warm, timed)
        if "ms_step" in result:
            ms = result["ms_step"]
            speed = {"tokens_s": 1000 * shape.tokens / ms, "tflops": self.flops(config, shape.tokens) / ms / 1e9}
            result |= {"ms_trial": ms} | speed
        return result


def lazily(make: Callable[[], Bench]) -> tuple[Callable[[], Bench], Cell]:
    """The bench, and the cell that loads it."""
    held: list[Bench] = []

    def get() -> Bench:
        if not held:
            held.append(make())
        return held[0]

    def load() -> dict:
        bench = get()
        result = {"seconds": bench.loaded_s, "parameters": bench.base.linears.total_parameters}
        if on_gpu():
            result["allocated_gb"] = torch.cuda.memory_allocated() / 1e9
            x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
            for _ in range(300):  # the clocks rise
                torch.mm(x, x)
            sync()
        return result

    return get, Cell("load", load, 5, 60, always=True)
