"""How the training of a trial is said in the words of `transformers.TrainingArguments`, which most targets share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.study.measures import MEASURES

if TYPE_CHECKING:
    from lora_lab.exporters.trial import ExportedTrial

OPTIMIZERS = {"adamw_torch": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "sgd": "sgd"}
OUTPUT = "output"
"""The folder that a training writes, in the export folder."""


def training_arguments(trial: ExportedTrial) -> dict[str, Any]:
    """Every setting of the training by its name in `transformers.TrainingArguments`, defaults included."""
    training = trial.config.training
    return {
        "output_dir": OUTPUT,
        **length(trial),
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "per_device_eval_batch_size": training.per_device_eval_batch_size,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        **scheduler_keywords(trial),
        "warmup_steps": trial.warmup_steps,
        "optim": OPTIMIZERS[training.optim],
        "adam_beta1": training.adam_beta1,
        "adam_beta2": training.adam_beta2,
        "adam_epsilon": training.adam_epsilon,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "gradient_checkpointing": training.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": trial.dtype.name == "bfloat16",
        "fp16": trial.dtype.name == "float16",
        "seed": training.seed,
        "data_seed": training.seed,
        **evaluation(trial),
        "logging_strategy": "steps",
        "logging_steps": training.logging_steps,
        **keeping(trial),
        "report_to": "none",
    }


def length(trial: ExportedTrial) -> dict[str, int]:
    """How long to train; `max_steps` where the study sets it, and where rows are packed in another way."""
    training = trial.config.training
    epochs = {"num_train_epochs": training.num_train_epochs}
    return epochs | ({"max_steps": trial.total_steps} if training.max_steps or trial.config.data.packing else {})


def scheduler_keywords(trial: ExportedTrial) -> dict[str, Any]:
    """The steps in which warmup_stable_decay falls; nothing for another schedule."""
    if trial.decay_steps is None:
        return {}
    return {"lr_scheduler_kwargs": {"num_decay_steps": trial.decay_steps}}


def evaluation(trial: ExportedTrial) -> dict[str, Any]:
    """When to evaluate: at the ends of epochs, or every so many steps."""
    steps = trial.config.training.eval_steps
    when = {"eval_strategy": "epoch"} if steps is None else {"eval_strategy": "steps", "eval_steps": steps}
    return when | {"eval_on_start": False}


def keeping(trial: ExportedTrial) -> dict[str, Any]:
    """Which checkpoints to keep: none, or the best one, so that it is loaded at the end."""
    training, when = trial.config.training, evaluation(trial)
    if not training.load_best_model_at_end:
        return {"save_strategy": "no"}
    return {
        "load_best_model_at_end": True,
        "metric_for_best_model": training.metric_for_best_model,
        "greater_is_better": MEASURES[training.metric_for_best_model].goal == "maximize",
        "save_strategy": when["eval_strategy"],
        **({"save_steps": when["eval_steps"]} if "eval_steps" in when else {}),
        "save_total_limit": 1,
    }


def early_stopping(trial: ExportedTrial) -> dict[str, Any] | None:
    """Keywords of `transformers.EarlyStoppingCallback`, None for a trial that is not to stop early."""
    training = trial.config.training
    if training.early_stopping_patience is None:
        return None
    return {
        "early_stopping_patience": training.early_stopping_patience,
        "early_stopping_threshold": training.early_stopping_threshold,
    }
