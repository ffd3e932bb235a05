"""The peer at the shapes of real models: `peft` on a copy of the base's modules, in `Trainer` and in a plain loop."""

from __future__ import annotations

import os
import statistics
import time
from typing import TYPE_CHECKING, Any

import torch
from peft import get_peft_model
from transformers import Trainer, TrainerCallback, TrainingArguments
from workload import collate

from gpu_items.device import device, free_all, kernels, memory_now, on_gpu, out_of_memory, sync
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.reference.model import sharing_copy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gpu_items.bases import Tokens
    from lora_lab.study.settings import LoraSettings, TrialConfig
    from lora_lab.training.base.loading import Base


class _Watch(TrainerCallback):
    """The times at the begin of the first step and at the end of each, the device waited for."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if not self.times:
            self.times.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        sync()
        self.times.append(time.perf_counter())


class Peer:
    """PEFT models of trials on one base, one at a time."""

    def __init__(self, base: Base, tokens: Tokens, scratch: Path) -> None:
        self._base, self._tokens, self._scratch = base, tokens, scratch
        self._pristine = sharing_copy(base.model)
        self._made: dict[LoraSettings, Any] = {}

    def drop(self) -> None:
        """Free the adapter."""
        self._made.clear()
        free_all()

    def model(self, config: TrialConfig) -> Any:
        """The PEFT model of a trial, made once for trials of equal LoRA settings that follow each other."""
        if config.lora not in self._made:
            self.drop()
            model, settings = sharing_copy(self._pristine), lora_config(config.lora, self._base.linears)
            torch.manual_seed(0)
            with device():
                self._made[config.lora] = get_peft_model(model, settings)
        return self._made[config.lora]

    def steps(self, config: TrialConfig, warm: int, timed: int) -> dict:
        """Milliseconds of a step of `Trainer`."""
        watch = _Watch()
        lack: dict[str, Any] = {}
        trainer = None
        try:
            trainer = self._trainer(config, warm + timed)
            trainer.add_callback(watch)
            if on_gpu():
                torch.cuda.reset_peak_memory_stats()
            trainer.train()
        except Exception as error:
            if not out_of_memory(error):
                raise
            lack = {"does_not_fit": True, "detail": " ".join(str(error).split())[:200]}
        figures = memory_now() if on_gpu() else {}
        del trainer
        self._clean()  # not before the error is gone, which holds all activations
        if lack:
            return lack
        spent = [1000 * (b - a) for a, b in zip(watch.times[warm:], watch.times[warm + 1 :], strict=False)]
        found = {"ms_step": statistics.median(spent), "ms_min": min(spent), "ms_max": max(spent), "steps": len(spent)}
        return found | figures

    def _trainer(self, config: TrialConfig, steps: int) -> Trainer:
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        arguments = TrainingArguments(
            output_dir=str(self._scratch / "trainer"),
            per_device_train_batch_size=config.training.per_device_train_batch_size,
            learning_rate=1e-5,
            lr_scheduler_type="constant",
            max_steps=steps,
            optim="adamw_torch_fused",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=not on_gpu(),
            bf16=on_gpu(),
            disable_tqdm=True,
        )
        data = self._tokens.splits(config.data).train
        rows = [{"input_ids": ids, "labels": ids} for ids in data.input_ids]
        trainer = Trainer(model=self.model(config), args=arguments, train_dataset=rows, data_collator=collate)
        trainer.log = lambda *_, **__: None
        return trainer

    def _clean(self) -> None:
        for model in self._made.values():
            model.zero_grad(set_to_none=True)
            for name in ("forward", "_original_forward"):  # accelerate's wrapper around the model
                vars(model).pop(name, None)
        free_all()

    def bare(self, config: TrialConfig) -> dict:
        """Milliseconds of a step of the same PEFT model in a plain loop: no `Trainer` around it."""
        step = self._bare_step(config)
        sync()
        begun = time.perf_counter()
        for _ in range(6):
            step()
        sync()
        ms = 1000 * (time.perf_counter() - begun) / 6
        tokens = config.training.per_device_train_batch_size * config.data.max_length
        del step
        free_all()
        return {"T": tokens, "mode": "bare", "ms_step": ms, "ms_trial": ms, "tokens_s": 1000 * tokens / ms}

    def profile(self, config: TrialConfig) -> dict:
        """What the device does in such a step."""
        tokens = config.training.per_device_train_batch_size * config.data.max_length
        return {"T": tokens, "mode": "bare"} | kernels(self._bare_step(config))

    def _bare_step(self, config: TrialConfig) -> Callable[[], None]:
        model = self.model(config)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
        shape = (config.training.per_device_train_batch_size, config.data.max_length)
        ids = torch.randint(3, self._base.model.config.vocab_size, shape, device=device())

        def step() -> None:
            with torch.autocast(device().type, torch.bfloat16):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

        for _ in range(2):
            step()
        return step
