"""The same trials packed, and one after another with `transformers.Trainer` + `peft`: python benchmarks/equal_work.py

Both sides train the same list of mixed trials on the same tokens, in one process, on a base that is loaded once, in
float32, with the same attention, batches, schedule, optimizer and logging interval, without evaluation and saving.
They take turns, so that a change of the machine's speed meets both. The result is printed and written as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from lora_lab.data.tokens import TokenizedDataset
from lora_lab.study.events import Logged
from lora_lab.study.settings import DataSettings, LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.adapters import lora_config
from lora_lab.training.base import load_base
from lora_lab.training.datasets import TokenizedSplits
from lora_lab.training.engine import PackedEngine

MODEL = ModelSettings(model_name_or_path="builtin/tiny-llama")
RANKS = (4, 8, 16, 32, 64, 128, 16, 8)
TARGETS = ("all-linear", "attention", "mlp")
CELLS = {64: (1, 64), 128: (1, 128), 256: (2, 128), 512: (4, 128), 1024: (8, 128), 2048: (16, 128)}
"""Tokens per trial and step: rows, length."""


class RandomTokens:
    """Stands where a study has its data: rows of random tokens, all of one length."""

    def __init__(self, rows: int, length: int) -> None:
        ids = tuple(np.random.default_rng(0).integers(3, 1000, (rows, length)))
        train = TokenizedDataset(ids, ids, truncated=0, cut_tokens=0, fingerprint="random", notes=())
        self._splits = TokenizedSplits(train, train, None, {}, ())
        self.train = train

    def splits(self, _: DataSettings) -> TokenizedSplits:
        return self._splits


def make_trials(count: int, batch: int, steps: int) -> list[TrialConfig]:
    return [
        TrialConfig(
            model=MODEL,
            data=DataSettings(train="random"),
            training=TrainingSettings(
                learning_rate=1e-3 / (1 + number % 2), per_device_train_batch_size=batch, max_steps=steps, seed=number
            ),
            lora=LoraSettings(r=RANKS[number % len(RANKS)], target_modules=TARGETS[number % len(TARGETS)]),
        )
        for number in range(count)
    ]


def packed_seconds(base, tokens: RandomTokens, trials: list[TrialConfig], pack: int, folder: Path) -> float:
    """Wall time of the training steps of all trials, `pack` at a time, refilled; without the final evaluation."""
    engine = PackedEngine(base, tokens, folder)
    waiting, steps_left = list(enumerate(trials)), {}
    seconds = 0.0
    while waiting or steps_left:
        while waiting and len(steps_left) < pack:
            number, config = waiting.pop(0)
            engine.admit(number, config)
            # One step is left over, and the trial leaves before it: the last step would be followed by an evaluation.
            steps_left[number] = config.training.max_steps - 1
        started = time.perf_counter()
        events = engine.step()
        seconds += time.perf_counter() - started
        for event in events:
            if isinstance(event, Logged):
                steps_left[event.number] -= 1
                if not steps_left[event.number]:
                    engine.discard(event.number)
                    del steps_left[event.number]
    for hooks in (module._forward_hooks for module in base.model.modules()):
        hooks.clear()
    return seconds


def collate(rows):
    return {name: torch.tensor(np.stack([row[name] for row in rows])) for name in ("input_ids", "labels")}


def trainer_seconds(base, tokens: RandomTokens, trials: list[TrialConfig], folder: Path) -> float:
    """Wall time of `Trainer.train` for one trial after another, on copies of the base made beforehand."""
    rows = [
        {"input_ids": ids, "labels": labels}
        for ids, labels in zip(tokens.train.input_ids, tokens.train.labels, strict=True)
    ]
    seconds = 0.0
    for config in trials:
        settings = config.training
        torch.manual_seed(settings.seed)
        peft_config = lora_config(config.lora, base.linears)
        model = get_peft_model(
            copy.deepcopy(base.model),
            LoraConfig(
                task_type="CAUSAL_LM",
                r=peft_config.r,
                lora_alpha=peft_config.lora_alpha,
                target_modules=peft_config.target_modules,
            ),
        )
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=settings.per_device_train_batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="constant",
            max_steps=settings.max_steps - 1,
            optim="adamw_torch_fused",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            seed=settings.seed,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate)
        trainer.log = lambda *_, **__: None
        started = time.perf_counter()
        trainer.train()
        seconds += time.perf_counter() - started
    return seconds


def measure(cell: int, packs: list[int], trials: int, steps: int, repeats: int, base) -> dict:
    rows, length = CELLS[cell]
    tokens = RandomTokens(max(64, rows * 4), length)
    configs = make_trials(trials, rows, steps)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for repeat in range(repeats + 1):  # the first one warms up
            found = {"trainer": trainer_seconds(base, tokens, configs, folder / "trainer")}
            for pack in packs:
                found[f"packed {pack}"] = packed_seconds(base, tokens, configs, pack, folder / f"p{repeat}-{pack}")
            if repeat:
                for name, seconds in found.items():
                    times.setdefault(name, []).append(seconds)
    per_step = {name: 1000 * statistics.median(values) / trials / (steps - 1) for name, values in times.items()}
    ratios = {
        name: round(statistics.median(a / b for a, b in zip(times["trainer"], values, strict=True)), 2)
        for name, values in times.items()
    }
    print(
        f"{cell:5d} tokens: " + "  ".join(f"{n} {ms:.1f} ms ({ratios[n]}x)" for n, ms in per_step.items()), flush=True
    )
    return {
        "tokens_per_trial_step": cell,
        "ms_per_trial_step": {name: round(ms, 2) for name, ms in per_step.items()},
        "speedup_over_trainer": ratios,
        "seconds": {name: [round(value, 3) for value in values] for name, values in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, nargs="+", default=[64, 128, 256, 512, 1024])
    parser.add_argument("--packs", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=21)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("equal_work.json"))
    options = parser.parse_args()
    base = load_base(MODEL, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    results = [
        measure(cell, options.packs, options.trials, options.steps, options.repeats, base) for cell in options.cells
    ]
    report = {
        "what": "ms per trial and step, packed against sequential Trainer + peft in one process on a loaded base",
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "lora-lab")},
        "trials": options.trials,
        "ranks": RANKS[: options.trials],
        "steps": options.steps - 1,
        "cells": results,
    }
    options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
