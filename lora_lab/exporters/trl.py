"""TRL: `trl sft --config trl.yaml`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.exporters.arguments import training_arguments
from lora_lab.exporters.files import plain_rows, write_rows, write_tokens, write_yaml

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

FILE = "trl.yaml"


def write(trial: ExportedTrial, folder: Path) -> str:
    """Write settings and data; the launch command."""
    rows = trial.data_form == "rows"
    if rows:
        examples = trial.examples
        write_rows(folder, [plain_rows(examples.train.examples), plain_rows(examples.eval.examples)])
    else:
        write_tokens(folder, trial)
    write_yaml(folder / FILE, trial, "trl", settings(trial, rows=rows))
    return f"trl sft --config {FILE}"


def settings(trial: ExportedTrial, *, rows: bool) -> dict[str, Any]:
    """Every key of the settings file."""
    config = trial.config
    arguments = training_arguments(trial)
    return {
        "model_name_or_path": trial.model,
        "model_revision": config.model.revision or "main",
        "dtype": trial.dtype.name,
        **_quantization(trial),
        "dataset_name": "./rows" if rows else "./tokens",
        "dataset_train_split": "train",
        "dataset_test_split": "validation",
        "completion_only_loss": rows and trial.row_format == "prompt_completion",
        "assistant_only_loss": rows and trial.row_format == "messages",
        "max_length": config.data.max_length,
        "truncation_mode": "keep_start",
        "packing": config.data.packing,
        "packing_strategy": "bfd",
        "padding_free": False,
        "eval_packing": False,
        "shuffle_dataset": False,
        "loss_type": "nll",
        "use_peft": True,
        "lora_task_type": "CAUSAL_LM",
        "lora_r": config.lora.r,
        "lora_alpha": trial.alpha,
        "lora_dropout": config.lora.lora_dropout,
        "lora_target_modules": _targets(trial),
        **({"lora_target_parameters": list(trial.target_parameters)} if trial.target_parameters else {}),
        **({"lora_modules_to_save": list(config.lora.modules_to_save)} if config.lora.modules_to_save else {}),
        "use_rslora": config.lora.use_rslora,
        "use_dora": config.lora.use_dora,
        **arguments,
    }


def _targets(trial: ExportedTrial) -> list[str]:
    """Target modules for TRL, which makes a regex of a list of one name: one that matches the name as an ending."""
    names = list(trial.flat_targets)
    if len(names) != 1:
        return names
    escaped = names[0].replace(".", r"\.")
    return [escaped if "." in names[0] else rf".*\.{escaped}"]


def _quantization(trial: ExportedTrial) -> dict[str, Any]:
    model = trial.config.model
    if model.quantization == "none":
        return {"load_in_4bit": False, "load_in_8bit": False}
    if model.quantization == "int8":
        return {"load_in_4bit": False, "load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": model.quantization,
        "use_bnb_nested_quant": model.double_quant,
    }
