"""`Trainer` over `get_peft_model`, given a trial's rows in the order in which the product takes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import get_peft_model
from torch.nn import functional
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments

from gpu_items.device import on_gpu
from lora_lab.data.order import batches
from lora_lab.training.base.adapters import lora_config

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.study.settings import TrainingSettings, TrialConfig
    from lora_lab.study.targets import LinearMap

OPTIMIZERS = {"adamw_torch": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "sgd": "sgd"}
Example = tuple[Any, Any]
"""Token ids and labels."""


class _InOrder(Trainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(train_dataset or self.train_dataset)


class _Loss:
    """The loss as the product defines it: over the labels of the whole optimizer step, in float32 at least."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        logits = outputs.logits[:, :-1].reshape(-1, outputs.logits.shape[-1])
        logits = logits.float() if logits.dtype == torch.bfloat16 else logits
        total = functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum")
        self.parts.append(total.detach() / num_items_in_batch)
        return total / num_items_in_batch


def train_alone(
    model: Any, config: TrialConfig, linears: LinearMap, train: TokenizedDataset, folder: Path, more_padding: int = 0
) -> dict[str, Any]:
    """Losses and gradient norms by step, and the adapter."""
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    settings = config.training
    peft_config = lora_config(config.lora, linears)
    torch.manual_seed(settings.seed)
    model = get_peft_model(model, peft_config)
    loss, norms = _Loss(), []
    trainer = _InOrder(
        model=model,
        args=_arguments(settings, folder, half=config.model.dtype == "bfloat16"),
        train_dataset=[_examples(train, index) for index in _order(train, settings)],
        data_collator=lambda rows: _collated(rows, more_padding),
        compute_loss_func=loss,
    )
    trainer.log = lambda logs, *_, **__: norms.append(float(logs["grad_norm"])) if "grad_norm" in logs else None
    trainer.train()
    parts, count = [float(part) for part in loss.parts], settings.gradient_accumulation_steps
    trained = {name: value.detach().cpu() for name, value in model.named_parameters() if value.requires_grad}
    return {
        "losses": [sum(parts[start : start + count]) for start in range(0, len(parts), count)],
        "norms": norms,
        "adapter": {name.replace(".default", ""): value for name, value in trained.items()},
        "eval_loss": None,
        "end": "Finished",
    }


def _order(train: TokenizedDataset, settings: TrainingSettings) -> list[int]:
    """Rows of as many epochs as the steps need."""
    size, steps = settings.per_device_train_batch_size, settings.max_steps or 0
    epochs = -(-steps * size * settings.gradient_accumulation_steps // len(train))
    return [
        int(index)
        for epoch in range(epochs)
        for batch in batches(len(train), size, settings.seed, epoch)
        for index in batch
    ]


def _examples(train: TokenizedDataset, index: int) -> list[Example]:
    """The examples of a row: several where they are packed."""
    ids, labels = train.input_ids[index], train.labels[index]
    starts = [0] if train.positions is None else np.flatnonzero(train.positions[index] == 0)
    return list(zip(np.split(ids, starts[1:]), np.split(labels, starts[1:]), strict=True))


def _collated(rows: list[list[Example]], more_padding: int) -> dict[str, Tensor]:
    examples = [example for row in rows for example in row]
    length = max(len(ids) for ids, _ in examples) + more_padding

    def padded(row: Any, value: int) -> list[int]:
        return [*row, *[value] * (length - len(row))]

    return {
        "input_ids": torch.tensor([padded(ids, 0) for ids, _ in examples]),
        "labels": torch.tensor([padded(labels, -100) for _, labels in examples]),
        "attention_mask": torch.tensor([padded([1] * len(ids), 0) for ids, _ in examples]),
    }


def _arguments(settings: TrainingSettings, folder: Path, *, half: bool) -> TrainingArguments:
    recompute = settings.gradient_checkpointing
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        num_train_epochs=1,
        max_steps=settings.max_steps,
        optim=OPTIMIZERS[settings.optim],
        gradient_checkpointing=recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recompute else None,
        bf16=half and on_gpu(),
        report_to="none",
        save_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        use_cpu=not on_gpu(),
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=settings.seed,
    )
