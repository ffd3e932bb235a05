"""What the benchmarks share: trials and tokens, the two ways to train them, and where it was measured.

The peer is what people run today: `peft` on a model, trained by `transformers.Trainer`. It gets the same base (loaded
once, its tensors shared), tokens, batches, dtype, attention, optimizer (fused AdamW), schedule and logging interval,
and neither evaluates nor saves.
"""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments

from lora_lab.data.tokens import TokenizedDataset
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.events import Logged
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.datasets import TokenizedSplits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.training.base.loading import Base
    from lora_lab.training.packed_engine import PackedEngine

MODEL = ModelSettings(model_name_or_path="builtin/tiny-llama")
RANKS = (4, 8, 16, 32, 64, 128, 16, 8)
TARGETS = ("all-linear", "attention", "mlp")
SHAPES = {64: (1, 64), 128: (1, 128), 256: (2, 128), 512: (4, 128), 1024: (8, 128), 2048: (16, 128), 4096: (32, 128)}
"""Tokens per trial and step: rows, length."""
RESULTS = Path(__file__).parent


class RandomTokens:
    """Stands where a study has its data: rows of random tokens, all of one length."""

    def __init__(self, rows: int, length: int, vocabulary: int = 1000) -> None:
        ids = tuple(np.random.default_rng(0).integers(3, vocabulary, (rows, length)))
        self.train = TokenizedDataset(ids, ids, fingerprint="random", notes=())
        self._splits = TokenizedSplits(self.train, self.train, None, {}, ())

    def splits(self, _: DataSettings) -> TokenizedSplits:
        return self._splits


def make_trials(
    count: int,
    batch: int,
    steps: int,
    *,
    model: ModelSettings = MODEL,
    ranks: Sequence[int] = RANKS,
    targets: Sequence[str] = TARGETS,
    length: int = 128,
) -> list[TrialConfig]:
    """`count` different trials; any eight that follow each other have the same mix of ranks."""
    return [
        TrialConfig(
            model=model,
            data=DataSettings(train="random", max_length=length),
            training=TrainingSettings(
                learning_rate=1e-3 / (1 + number % 2),
                per_device_train_batch_size=batch,
                max_steps=steps,
                eval_steps=steps,  # no evaluation before a trial's last step: the peer makes none
                logging_steps=1,
                seed=number,
            ),
            lora=LoraSettings(r=ranks[number % len(ranks)], target_modules=targets[number % len(targets)]),
        )
        for number in range(count)
    ]


def train_packed(
    engine: PackedEngine,
    trials: Sequence[TrialConfig],
    pack: int,
    first_number: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of the optimizer steps of all trials, `pack` at a time, refilled.

    A trial's last step would be followed by its evaluation, so it leaves the pack before.
    """
    waiting = list(enumerate(trials, first_number))
    steps_left: dict[int, int] = {}
    seconds = 0.0
    while waiting or steps_left:
        while waiting and len(steps_left) < pack:
            number, config = waiting.pop(0)
            engine.admit(number, config)
            if number not in engine.active:
                raise MemoryError(f"no room for trial {number} in a pack of {pack}")
            steps_left[number] = (config.training.max_steps or 0) - 1
        started = clock()
        events = engine.step()
        seconds += clock() - started
        if engine.set_aside:
            raise MemoryError(f"no room for a pack of {pack}")
        for event in events:
            if isinstance(event, Logged):
                steps_left[event.number] -= 1
                if not steps_left[event.number]:
                    engine.discard(event.number)
                    del steps_left[event.number]
    return seconds


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of rows of one length."""
    return {name: torch.tensor(np.stack([row[name] for row in rows])) for name in ("input_ids", "labels")}


class _Stopwatch(TrainerCallback):
    """From the begin of the first step to the end of the last, without what `Trainer.train` does around them."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self.seconds = clock, 0.0

    def on_step_begin(self, _args, state, _control, **_):
        if state.global_step == 0:
            self._started = self._clock()

    def on_step_end(self, *_, **__):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds = self._clock() - self._started


def train_alone(
    model: Any,
    base: Base,
    tokens: RandomTokens,
    config: TrialConfig,
    folder: Path,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of the steps of `Trainer` over `get_peft_model(model)`: one less than in `config`, as packed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a name inside transformers that peft uses
        stopwatch = _Stopwatch(clock)
        _make_trainer(model, base, tokens, config, folder, stopwatch).train()
    return stopwatch.seconds


def _make_trainer(
    model: Any, base: Base, tokens: RandomTokens, config: TrialConfig, folder: Path, stopwatch: _Stopwatch
) -> Trainer:
    settings = config.training
    torch.manual_seed(settings.seed)
    adapted = get_peft_model(model, lora_config(config.lora, base.linears))
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.per_device_train_batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant",
        max_steps=(settings.max_steps or 0) - 1,
        optim="adamw_torch_fused",
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=base.device.type == "cpu",
        bf16=base.dtype == torch.bfloat16,
        disable_tqdm=True,
        seed=settings.seed,
    )
    rows = [
        {"input_ids": ids, "labels": labels}
        for ids, labels in zip(tokens.train.input_ids, tokens.train.labels, strict=True)
    ]
    trainer = Trainer(model=adapted, args=arguments, train_dataset=rows, data_collator=collate)
    trainer.log = lambda *_, **__: None
    trainer.add_callback(stopwatch)
    return trainer


def hardware() -> dict[str, Any]:
    """Where and with what it was measured."""
    cuda = torch.cuda.is_available()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": {name: _version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "lora-lab")},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write_result(name: str, what: str, result: dict[str, Any], output: Path | None) -> Path:
    """Write `<name>.json` beside the scripts, or to `output`."""
    path = output or RESULTS / f"{name}.json"
    path.write_text(json.dumps({"what": what, **hardware(), **result}, indent=2) + "\n")
    return path
