"""Axolotl: `axolotl train axolotl.yaml`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.exporters.arguments import evaluation, keeping, length, scheduler_keywords, training_arguments
from lora_lab.exporters.files import plain_rows, segment_rows, write_rows, write_tokens, write_yaml
from lora_lab.exporters.initial import write_initial_adapter
from lora_lab.study.settings import LoftQSettings

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

FILE = "axolotl.yaml"
INITIAL = "init_adapter"
"""The adapter as PEFT draws it from the trial's seed."""
SAME_NAMES = (
    *("output_dir", "gradient_accumulation_steps", "learning_rate", "warmup_steps", "adam_beta1", "adam_beta2"),
    *("adam_epsilon", "weight_decay", "max_grad_norm", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("bf16", "fp16", "seed", "logging_steps"),
)
"""Settings that have the names of `transformers.TrainingArguments`."""


def write(trial: ExportedTrial, folder: Path) -> str:
    """Write settings, data, and the adapter to start from; the launch command."""
    rows = trial.data_form == "rows"
    if trial.draws_by_peft:
        write_initial_adapter(trial, folder / INITIAL)
    if rows:
        _write_rows(trial, folder)
    else:
        write_tokens(folder, trial)
    write_yaml(folder / FILE, trial, "axolotl", settings(trial, rows=rows))
    return f"axolotl train {FILE}"


def settings(trial: ExportedTrial, *, rows: bool) -> dict[str, Any]:
    """Every key of the settings file."""
    config, arguments = trial.config, training_arguments(trial)
    layers = trial.layers_to_transform
    return {
        "base_model": trial.model,
        "model_revision": config.model.revision or "main",
        "trust_remote_code": False,
        "tf32": False,
        "float32": trial.dtype.name == "float32",
        **_quantization(trial),
        **_datasets(trial, rows=rows),
        "shuffle_merged_datasets": False,
        "val_set_size": 0.0,
        "dataset_prepared_path": "prepared",
        "sequence_len": config.data.max_length,
        "excess_length_strategy": "truncate",
        "sample_packing": config.data.packing,
        "eval_sample_packing": False,
        "pad_to_sequence_len": False,
        "attn_implementation": "sdpa",
        # Its own draw is another one; rank, alpha and targets of this adapter go before those below.
        **({"lora_model_dir": INITIAL} if trial.draws_by_peft else {}),
        "lora_r": config.lora.r,
        "lora_alpha": trial.alpha,
        "lora_dropout": config.lora.lora_dropout,
        "lora_target_linear": False,
        "lora_target_modules": list(trial.target_modules),
        **({"lora_target_parameters": list(trial.target_parameters)} if trial.target_parameters else {}),
        **({"peft_layers_to_transform": list(layers)} if layers is not None else {}),
        **({"lora_modules_to_save": list(config.lora.modules_to_save)} if config.lora.modules_to_save else {}),
        "peft_use_rslora": config.lora.use_rslora,
        "peft_use_dora": config.lora.use_dora,
        "peft_init_lora_weights": config.lora.init_lora_weights,
        **_loftq(trial),
        # Its fused kernels round in other places.
        **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel"), False),
        **({"loraplus_lr_ratio": ratio} if (ratio := config.training.loraplus_lr_ratio) else {}),
        **_length(trial),
        "micro_batch_size": arguments["per_device_train_batch_size"],
        "eval_batch_size": arguments["per_device_eval_batch_size"],
        "lr_scheduler": arguments["lr_scheduler_type"],
        **scheduler_keywords(trial),
        "optimizer": arguments["optim"],
        **{name: arguments[name] for name in SAME_NAMES},
        **evaluation(trial),
        **_keeping(trial),
    }


def _keeping(trial: ExportedTrial) -> dict[str, Any]:
    """Which checkpoints to keep: the best one it knows only where evaluations are counted in steps."""
    said = keeping(trial)
    if trial.config.training.load_best_model_at_end:
        every = trial.config.training.eval_steps or trial.plan.steps_per_epoch
        said |= {"eval_strategy": "steps", "eval_steps": every, "save_strategy": "steps", "save_steps": every}
    patience = trial.config.training.early_stopping_patience
    return said | ({} if patience is None else {"early_stopping_patience": patience})


def _length(trial: ExportedTrial) -> dict[str, int]:
    said = length(trial)
    return {"num_epochs": said.pop("num_train_epochs"), **said}


def _datasets(trial: ExportedTrial, *, rows: bool) -> dict[str, Any]:
    kind: dict[str, Any] = {"type": None}
    if rows and trial.row_format == "messages":
        kind = {
            "type": "chat_template",
            "chat_template": "tokenizer_default",
            "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles_to_train": ["assistant"],
            "train_on_eos": "turn",
        }
    elif rows:
        kind = {"type": "input_output"}
    folder = "rows" if rows else "tokens"
    one, other = (
        {"path": f"{folder}/{name}.jsonl", "ds_type": "json", "split": "train", **kind}
        for name in ("train", "validation")
    )
    return {"datasets": [one], "test_datasets": [other]}


def _write_rows(trial: ExportedTrial, folder: Path) -> None:
    parts = (trial.examples.train.examples, trial.examples.eval.examples)
    if trial.row_format == "messages":
        write_rows(folder, [plain_rows(examples) for examples in parts])
    else:
        write_rows(folder, [segment_rows(examples, trial.specials) for examples in parts])


def _quantization(trial: ExportedTrial) -> dict[str, Any]:
    model = trial.config.model
    if model.quantization in ("none", "int8"):
        return {"adapter": "lora", "load_in_4bit": False, "load_in_8bit": model.quantization == "int8"}
    return {
        "adapter": "qlora",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_config_kwargs": {
            "bnb_4bit_quant_type": model.quantization,
            "bnb_4bit_use_double_quant": model.double_quant,
        },
    }


def _loftq(trial: ExportedTrial) -> dict[str, Any]:
    if trial.config.lora.init_lora_weights != "loftq":
        return {}
    settings = trial.config.lora.loftq_config or LoftQSettings()
    return {"peft": {"loftq_config": {"loftq_bits": settings.loftq_bits}}}
