"""What a step of a pack consists of: its parts, its kernels, and its passes as a CUDA graph."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.llama import modeling_llama

from gpu_items.device import gpu_ms, kernels, memory_now, on_gpu, patched, sync
from lora_lab.training.packed.step import add_gradients

if TYPE_CHECKING:
    from gpu_items.bench import Bench, Shape
    from lora_lab.training.packed.slot import Slot


def profile(bench: Bench, shape: Shape) -> dict:
    """Milliseconds of the parts of a step, its launches, and how busy the device is."""
    bench.fill(shape)
    for _ in range(2):
        bench.engine.step()
    result = {"T": shape.tokens, "K": shape.count, "mode": shape.mode, "parts_ms": _parts(bench)}
    result |= kernels(bench.engine.step)
    bench.empty()
    return result


def _parts(bench: Bench) -> dict:
    """Milliseconds, the device waited for after each part."""
    engine, spent, repeats = bench.engine, Counter(), 3
    slots = bench.slots
    for _ in range(repeats):
        marks = [time.perf_counter()]

        def mark(marks: list[float] = marks) -> None:
            sync()
            marks.append(time.perf_counter())

        batch = engine._batch(slots, [slot.next_micro_batch() for slot in slots])
        layout = engine._model.layout(batch, slots)
        mark()
        losses = add_gradients(engine._model, slots, layout)
        mark()
        torch.stack([*losses.unbind(), *(slot.clip() for slot in slots)]).tolist()
        mark()
        for slot in slots:
            slot.step_optimizer()
        mark()
        for name, a, b in zip(
            ("batch", "forward and backward", "clip", "optimizer"), marks[:-1], marks[1:], strict=True
        ):
            spent[name] += 1000 * (b - a) / repeats
    for slot in slots:
        slot.abandon_step()
    return dict(spent)


class _Passes:
    """Forward and backward pass of a pack over one batch that stays where it is."""

    def __init__(self, bench: Bench) -> None:
        self._engine = bench.engine
        self.slots: list[Slot] = bench.slots
        batch = self._engine._batch(self.slots, [slot.next_micro_batch() for slot in self.slots])
        self._layout = self._engine._model.layout(batch, self.slots)

    def run(self) -> torch.Tensor:
        """Add the gradients; [K] losses."""
        return add_gradients(self._engine._model, self.slots, self._layout)

    def clear(self) -> None:
        for slot in self.slots:
            slot.zero_gradient()

    def gradients(self) -> list[torch.Tensor]:
        return [slot._gradient.clone() for slot in self.slots[:2]]

    def run_and_clear(self) -> None:
        self.run()
        self.clear()

    def distance(self, gradients: list[torch.Tensor]) -> float:
        """The largest relative difference of the gradients that are there now."""
        pairs = zip(self.slots, gradients, strict=False)
        return max(float((slot._gradient - known).norm() / known.norm()) for slot, known in pairs)


def graph(bench: Bench, shape: Shape) -> dict:
    """Both passes of a pack as a CUDA graph: are they captured, are they right, what do they cost?"""
    bench.fill(shape)
    passes = _Passes(bench)
    result: dict[str, Any] = {"T": shape.tokens, "K": shape.count, "mode": f"{shape.mode} + graph"}
    with patched(modeling_llama, "create_causal_mask", lambda *_, **__: None):
        passes.run_and_clear()
        losses = passes.run().clone()
        gradients = passes.gradients()
        passes.clear()
        again = passes.run().clone()
        result |= {"noise": passes.distance(gradients), "loss_noise": float((losses - again).abs().max())}
        result["eager_ms"] = gpu_ms(passes.run_and_clear, 3, 1, 1)
        passes.clear()
        result |= _replayed(passes, again, gradients) if on_gpu() else {"skipped": "no CUDA"}
    if "ms_step" in result:
        ms = result["ms_step"]
        result |= {"ms_trial": ms / shape.count, "tokens_s": 1000 * shape.count * shape.tokens / ms} | memory_now()
    bench.empty()
    return result


def _replayed(passes: _Passes, losses: torch.Tensor, gradients: list[torch.Tensor]) -> dict:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            passes.run()
    torch.cuda.current_stream().wait_stream(side)
    passes.clear()
    captured = torch.cuda.CUDAGraph()
    begun = time.perf_counter()
    with torch.cuda.graph(captured):
        own = passes.run()
    result = {"capture_s": time.perf_counter() - begun}
    passes.clear()
    captured.replay()
    sync()
    result["loss_difference"] = float((own - losses).abs().max())
    result["gradient_difference"] = passes.distance(gradients)

    def replay() -> None:
        captured.replay()
        passes.clear()

    def whole() -> None:
        captured.replay()
        torch.stack([*own.unbind(), *(slot.clip() for slot in passes.slots)]).tolist()
        for slot in passes.slots:
            slot.step_optimizer()

    result["replay_ms"] = gpu_ms(replay, 5, 1, 1)
    result["ms_step"] = gpu_ms(whole, 5, 1, 2)
    captured.reset()
    return result
