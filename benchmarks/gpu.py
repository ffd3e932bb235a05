"""Packs on a GPU, at the shapes of real models with random weights: python benchmarks/gpu.py

Nothing is downloaded: speed and memory do not depend on the values of weights. For every model, quantization, batch
and length: tokens per second of packs that grow until they no longer fit, the ratio over `Trainer` + `peft` one trial
after another on the same loaded base, the share of what a bare bfloat16 matrix product reaches on this device, and
predicted against allocated memory. Cells for which no time is left are named as not run. `--toy` goes through all of
it in miniature, also on a CPU.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, Qwen2Config
from workload import RandomTokens, make_trials, train_alone, train_packed, write_result

from lora_lab.study.settings import ModelSettings
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.architecture import linear_map
from lora_lab.training.base.loading import frozen_base
from lora_lab.training.device import free_cached_memory, is_out_of_memory
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference.model import sharing_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.settings import DataSettings, TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.datasets import TokenizedSplits

RANKS = (4, 256, 16, 64)
TARGETS = ("all-linear",)
PACKS = (1, 2, 4, 8, 16, 32)
LLAMA = {"vocab_size": 128256, "rope_theta": 500000.0, "max_position_embeddings": 8192}
MODELS: dict[str, PretrainedConfig] = {
    "Llama-3.2-1B": LlamaConfig(
        **LLAMA,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=64,
        tie_word_embeddings=True,
    ),
    "Llama-3.1-8B": LlamaConfig(
        **LLAMA,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "Qwen2.5-7B": Qwen2Config(
        vocab_size=152064,
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        max_position_embeddings=8192,
    ),
    "toy": LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    ),
}


@dataclass(frozen=True)
class Plan:
    """One base, and the rows and lengths that are measured on it."""

    model: str
    quantization: str
    cells: tuple[tuple[int, int], ...]


PLANS = (  # the ones that matter most come first
    Plan("Llama-3.1-8B", "none", ((1, 512), (1, 1024), (8, 512), (1, 256))),
    Plan("Llama-3.1-8B", "nf4", ((1, 512), (4, 512))),
    Plan("Llama-3.2-1B", "none", ((1, 256), (1, 1024), (8, 1024))),
    Plan("Qwen2.5-7B", "none", ((1, 512), (4, 512))),
    Plan("Qwen2.5-7B", "nf4", ((1, 1024),)),
    Plan("Llama-3.2-1B", "nf4", ((1, 512),)),
)
TOY_PLANS = (Plan("toy", "none", ((1, 16), (2, 32))), Plan("toy", "nf4", ((1, 16),)))


def make_base(plan: Plan, device: torch.device) -> Base:
    """A base of random weights, quantized on the device."""
    settings = ModelSettings.model_validate({"model_name_or_path": plan.model, "quantization": plan.quantization})
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(MODELS[plan.model], dtype=torch.bfloat16)
    linears = linear_map(model)
    if plan.quantization == "nf4":
        head = model.get_output_embeddings()
        for name, module in list(model.named_modules()):
            if type(module) is nn.Linear and module is not head:
                model.set_submodule(name, _four_bit(module, device))
        model.is_loaded_in_4bit = True
    return frozen_base(model, settings, torch.bfloat16, device, linears=linears, tokenizer=None, location="random")


def _four_bit(linear: nn.Linear, device: torch.device) -> nn.Module:
    quantized = bitsandbytes.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=torch.bfloat16,
        compress_statistics=False,
        quant_type="nf4",
        device="meta",
    )
    quantized.weight = bitsandbytes.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=False, module=quantized
    )
    quantized.bias = linear.bias
    return quantized.to(device)


def ceiling_flops(device: torch.device, size: int) -> float:
    """Floating-point operations per second of a bfloat16 matrix product."""
    left, right = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    seconds = min(_timed(lambda: left @ right, device) for _ in range(5))
    return float(2 * size**3 / seconds)


def _timed(action: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


class Tokens:
    """Stands where a study has its data: random tokens of the length that a trial asks for."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._made: dict[int, RandomTokens] = {}

    def of(self, length: int) -> RandomTokens:
        if length not in self._made:
            self._made[length] = RandomTokens(64, length, self._vocabulary)
        return self._made[length]

    def splits(self, settings: DataSettings) -> TokenizedSplits:
        return self.of(settings.max_length).splits(settings)


class Bench:
    """One base with packs of adapters, and a copy of its modules for the peer."""

    def __init__(self, plan: Plan, device: torch.device, folder: Path, ceiling: float) -> None:
        self.base = make_base(plan, device)
        self._pristine = sharing_copy(self.base.model)
        self._plan, self._folder, self._ceiling = plan, folder, ceiling
        self._tokens = Tokens(MODELS[plan.model].vocab_size)
        self._engine = PackedEngine(self.base, self._tokens, folder)
        self._numbers = 0

    def cell(self, rows: int, length: int, steps: int, packs: Sequence[int]) -> dict[str, Any]:
        """Everything about one number of rows and length."""
        found: dict[str, Any] = {"rows": rows, "length": length, "steps": steps, "packs": {}}
        known = len(self._engine.measured_memory)
        self._sequential(rows, length, 2, 1)
        alone = found["sequential_ms"] = round(self._sequential(rows, length, steps, len(RANKS)), 2)
        for pack in packs:
            try:
                found["packs"][str(pack)] = self._packed(rows, length, steps, pack, alone)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                found["does_not_fit"] = pack
                break
            finally:
                for number in self._engine.active:
                    self._engine.discard(number)
                self._engine.set_aside.clear()
                gc.collect()
                free_cached_memory()
        # The engine measures every shape once, when it is admitted, which the trials are in the order of their ranks.
        measured = self._engine.measured_memory[known:]
        found["memory"] = [{"r": r} | one.metrics for r, one in zip(RANKS, measured, strict=False)]
        return found

    def _trials(self, count: int, rows: int, length: int, steps: int) -> list[TrialConfig]:
        model = ModelSettings.model_validate(
            {"model_name_or_path": self._plan.model, "quantization": self._plan.quantization}
        )
        return make_trials(count, rows, steps + 1, model=model, ranks=RANKS, targets=TARGETS, length=length)

    def _sequential(self, rows: int, length: int, steps: int, count: int) -> float:
        """ms per trial and step of `Trainer` + `peft`."""
        seconds = 0.0
        for config in self._trials(count, rows, length, steps):
            model = sharing_copy(self._pristine)
            seconds += train_alone(model, self.base, self._tokens.of(length), config, self._folder / "trainer")
            del model
            gc.collect()
            free_cached_memory()
        return 1000 * seconds / count / steps

    def _packed(self, rows: int, length: int, steps: int, pack: int, alone_ms: float) -> dict[str, Any]:
        count = max(pack, len(RANKS))
        seconds = 0.0
        for timed in (1, steps):  # the first one warms up
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            trials = self._trials(count, rows, length, timed)
            seconds = train_packed(self._engine, trials, pack, self._numbers)
            self._numbers += count
        per_step = seconds / count / steps
        mean_flops = sum(self._flops(config, rows * length) for config in trials) / count
        result = {
            "ms_per_trial_step": round(1000 * per_step, 3),
            "tokens_per_second": round(rows * length / per_step),
            "speedup": round(alone_ms / 1000 / per_step, 3),
            "share_of_ceiling": round(mean_flops / per_step / self._ceiling, 4),
        }
        if torch.cuda.is_available():
            result["max_memory_allocated"] = torch.cuda.max_memory_allocated()
        return result

    def _flops(self, config: TrialConfig, tokens: int) -> float:
        linears = self.base.linears
        shapes = (linears.shapes[name] for name in resolve_targets(linears, config.lora))
        adapter = sum(config.lora.r * (shape.d_in + shape.d_out) for shape in shapes)
        return tokens * (4.0 * linears.total_parameters + 6.0 * adapter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="tiny shapes, also on a CPU")
    parser.add_argument("--minutes", type=float, default=8.5, help="no cell is begun after this time")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--packs", type=int, nargs="+", default=list(PACKS))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if not (options.toy or torch.cuda.is_available()):
        parser.error("there is no CUDA device here; --toy runs on a CPU")
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ceiling = ceiling_flops(device, 256 if options.toy else 8192)
    result: dict[str, Any] = {"ceiling_tflops": round(ceiling / 1e12, 4), "ranks": RANKS, "bases": [], "not_run": []}
    for plan in TOY_PLANS if options.toy else PLANS:
        found: dict[str, Any] = {"model": plan.model, "quantization": plan.quantization, "cells": []}
        result["bases"].append(found)
        with tempfile.TemporaryDirectory() as scratch:
            bench = None
            for rows, length in plan.cells:
                if time.monotonic() - began > 60 * options.minutes:
                    result["not_run"].append([plan.model, plan.quantization, rows, length])
                    continue
                bench = bench or Bench(plan, device, Path(scratch), ceiling)
                cell = bench.cell(rows, length, options.steps, options.packs)
                found["cells"].append(cell)
                best = max((one["speedup"], name) for name, one in cell["packs"].items())
                print(
                    f"{plan.model} {plan.quantization} {rows} x {length}: {best[0]}x in packs of {best[1]}", flush=True
                )
                _write(result, options.output, toy=options.toy)
            del bench
            gc.collect()
            free_cached_memory()
    _write(result, options.output, toy=options.toy)


def _write(result: dict[str, Any], output: Path | None, *, toy: bool) -> None:
    """After every cell, so that a time limit loses only the one in work."""
    if output is None and toy:
        return
    write_result("gpu", "packs on a GPU at the shapes of real models, random weights", result, output)


if __name__ == "__main__":
    main()
