"""The oracle: one trial alone with `transformers.Trainer` + `peft`, and the same trial in a pack."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from bitsandbytes.optim import AdamW8bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.optimizers import create_loraplus_optimizer
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from workshop import Bench

from lora_lab.data.order import batches
from lora_lab.study.events import Logged
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.base.architecture import linear_map

if TYPE_CHECKING:
    from lora_lab.study.settings import ModelSettings, TrainingSettings, TrialConfig
    from lora_lab.training.packed_engine import PackedEngine


DEVICE = torch.device(os.environ.get("LORA_LAB_TEST_DEVICE", "cpu"))
"""What both sides train on; with `cuda` the whole folder is a test of the GPU."""
ON_CPU = DEVICE.type == "cpu"


@dataclass
class Run:
    """What a trial gave: losses by step, and its adapter by full module name."""

    losses: list[float]
    adapter: dict[str, torch.Tensor]
    eval_loss: float | None = None
    state: TrainerState | None = None
    """Of the oracle: which evaluation was the best, and where training ended."""


class Lab:
    """Makes trials, and runs them packed or with the oracle."""

    def __init__(self, base_folder, data_folder, scratch, dtype, **quantization):
        self.bench = Bench(base_folder, data_folder, scratch, dtype, device=DEVICE, **quantization)

    def trial(self, lora: dict | None = None, **settings) -> TrialConfig:
        return self.bench.trial(lora={"r": 8} | (lora or {}), **({"num_train_epochs": 1} | settings))

    def engine(self) -> PackedEngine:
        return self.bench.engine()

    def packed(self, configs, engine=None) -> list[Run]:
        """All trials in one pack, to their ends."""
        engine = engine or self.engine()
        for number, config in enumerate(configs):
            engine.admit(number, config)
        return self.drain(engine, len(configs))

    def drain(self, engine, count) -> list[Run]:
        losses = {number: {} for number in range(count)}
        final = {}
        while engine.active:
            for event in engine.step():
                if isinstance(event, Logged):
                    losses[event.number][event.step] = event.loss
                elif type(event).__name__ == "Finished":
                    final[event.number] = event
        return [
            Run(
                [losses[number][step] for step in sorted(losses[number])],
                read_adapter(engine.trial_folder(number) / "adapter") if number in final else {},
                final[number].metrics["eval_loss"] if number in final else None,
            )
            for number in range(count)
        ]

    def _plain_base(self):
        settings, folder = self.bench.model(), self.bench.base_folder
        dtype = getattr(torch, self.bench.dtype)
        if settings.quantization == "none":
            return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(DEVICE)
        quantization = _bits_and_bytes(settings)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, quantization_config=quantization, device_map={"": DEVICE}
        )
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

    def alone(self, config: TrialConfig) -> Run:
        """The oracle: `Trainer` + `get_peft_model`, given the same order of rows."""
        model = self._plain_base()
        peft_config = lora_config(config.lora, linear_map(model))  # the very config that users are given
        torch.manual_seed(config.training.seed)
        model = get_peft_model(model, LoraConfig(**_init_fields(peft_config)))
        splits = self.bench.data.splits(config.data)
        return train_alone(model, config, splits.train, self.bench.scratch, splits.eval)


def _bits_and_bytes(model: ModelSettings) -> BitsAndBytesConfig:
    """Written out once more for the oracle, as a user of transformers would."""
    if model.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model.quantization,
        bnb_4bit_use_double_quant=model.double_quant,
        bnb_4bit_compute_dtype=torch.float32,
    )


def _init_fields(config: LoraConfig) -> dict:
    names = [
        "task_type",
        "r",
        "lora_alpha",
        "target_modules",
        "layers_to_transform",
        "lora_dropout",
        "use_rslora",
        "init_lora_weights",
        "bias",
    ]
    return {name: getattr(config, name) for name in names}


class _Ordered(Trainer):
    def _get_train_sampler(self, train_dataset=None):
        return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)


def _collate(packed_rows):
    """Every example in a row of its own, whatever rows the trial packs them into."""
    rows = [example for row in packed_rows for example in row]
    length = max(len(row["input_ids"]) for row in rows)
    padded = {
        "input_ids": [list(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows],
        "labels": [list(row["labels"]) + [-100] * (length - len(row["labels"])) for row in rows],
        "attention_mask": [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows],
    }
    return {name: torch.tensor(values) for name, values in padded.items()}


def _examples(train, index) -> list[dict]:
    """The examples of a row; each begins at position 0."""
    ids, labels = train.input_ids[index], train.labels[index]
    starts = [0] if train.positions is None else np.flatnonzero(train.positions[index] == 0)
    return [
        {"input_ids": ids_part, "labels": labels_part}
        for ids_part, labels_part in zip(np.split(ids, starts[1:]), np.split(labels, starts[1:]), strict=True)
    ]


OPTIMIZERS = {"adamw_torch": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "sgd": "sgd"}


def _loraplus(model, settings: TrainingSettings):
    """PEFT's optimizer and the scheduler to be made, or nothing where the trial has no LoRA+."""
    if settings.loraplus_lr_ratio is None:
        return None, None
    keywords = {"betas": (settings.adam_beta1, settings.adam_beta2), "eps": settings.adam_epsilon}
    optimizer = create_loraplus_optimizer(
        model,
        {"adamw_torch": torch.optim.AdamW, "adamw_8bit": AdamW8bit, "sgd": torch.optim.SGD}[settings.optim],
        lr=settings.learning_rate,
        loraplus_lr_ratio=settings.loraplus_lr_ratio,
        loraplus_weight_decay=settings.weight_decay,
        **({} if settings.optim == "sgd" else keywords),
    )
    return optimizer, None


def _best_arguments(settings: TrainingSettings, train, held_out) -> dict:
    """What a user gives `Trainer` for its best checkpoint; in one batch, so that eval_loss is the mean over tokens."""
    if not settings.load_best_model_at_end:
        return {"save_strategy": "no"}
    micro_batches = -(-len(train) // settings.per_device_train_batch_size)
    every = settings.eval_steps or -(-micro_batches // settings.gradient_accumulation_steps)
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": settings.metric_for_best_model,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "steps",
        "save_steps": every,
        "per_device_eval_batch_size": len(held_out),
        "label_names": ["labels"],
    }


def _token_accuracy(prediction) -> dict[str, float]:
    given, wanted = prediction.predictions[:, :-1].argmax(-1), prediction.label_ids[:, 1:]
    return {"token_accuracy": float((given == wanted)[wanted != -100].mean())}


def _callbacks(settings: TrainingSettings) -> list:
    if settings.early_stopping_patience is None:
        return []
    return [EarlyStoppingCallback(settings.early_stopping_patience, settings.early_stopping_threshold)]


def train_alone(model, config: TrialConfig, train, scratch, held_out=None) -> Run:
    settings = config.training
    per_step = settings.per_device_train_batch_size * settings.gradient_accumulation_steps
    epochs = -(-(settings.max_steps or 0) * per_step // len(train)) or settings.num_train_epochs
    rows = [
        index
        for epoch in range(epochs)
        for batch in batches(len(train), settings.per_device_train_batch_size, settings.seed, epoch)
        for index in batch
    ]
    pieces: list[float] = []

    def loss_of(outputs, labels, num_items_in_batch=None):
        """Token cross-entropy in the dtype of the logits: transformers' own casts them to float32."""
        logits = outputs.logits[:, :-1].reshape(-1, outputs.logits.shape[-1])
        loss = functional.cross_entropy(logits, labels[:, 1:].reshape(-1), reduction="sum") / num_items_in_batch
        if torch.is_grad_enabled():
            pieces.append(loss.item())
        return loss

    arguments = TrainingArguments(
        output_dir=str(scratch / "trainer"),
        per_device_train_batch_size=settings.per_device_train_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.adam_beta1,
        adam_beta2=settings.adam_beta2,
        adam_epsilon=settings.adam_epsilon,
        max_grad_norm=settings.max_grad_norm,
        num_train_epochs=1,
        optim=OPTIMIZERS[settings.optim],
        max_steps=settings.max_steps or -1,
        lr_scheduler_kwargs={"num_decay_steps": settings.decay_steps} if settings.decay_steps else None,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if settings.gradient_checkpointing else None,
        report_to="none",
        **_best_arguments(settings, train, held_out),
        logging_strategy="no",
        use_cpu=ON_CPU,
        disable_tqdm=True,
        remove_unused_columns=False,
        seed=settings.seed,
    )
    trainer = _Ordered(
        model=model,
        args=arguments,
        train_dataset=[_examples(train, index) for index in rows],
        data_collator=_collate,
        compute_loss_func=loss_of,
        optimizers=_loraplus(model, settings),
        eval_dataset=None if held_out is None else [_examples(held_out, index) for index in range(len(held_out))],
        compute_metrics=_token_accuracy,
        callbacks=_callbacks(settings),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    accumulation = settings.gradient_accumulation_steps
    losses = [sum(pieces[i : i + accumulation]) for i in range(0, len(pieces), accumulation)]
    adapter = {
        name.replace(".default", ""): parameter.detach().cpu()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    return Run(losses, adapter, state=trainer.state)


def read_adapter(folder) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


def largest_drift(left: dict, right: dict) -> float:
    """The largest relative distance (Frobenius norm) of two adapters' tensors."""
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).norm() / right[name].norm().clamp_min(1e-30)) for name in left)
