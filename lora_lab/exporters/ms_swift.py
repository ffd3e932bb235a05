"""ms-swift: `swift sft swift.yaml`. It reads no tokens, so rows go to it with their beginning and end written out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.exporters.arguments import training_arguments
from lora_lab.exporters.files import SPLITS, turn_rows, write_rows, write_yaml

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

FILE = "swift.yaml"


def write(trial: ExportedTrial, folder: Path) -> str:
    """Write settings and rows; the launch command."""
    examples = trial.examples
    write_rows(folder, [turn_rows(part.examples, trial.specials) for part in (examples.train, examples.eval)])
    write_yaml(folder / FILE, trial, "ms-swift", settings(trial))
    return f"swift sft {FILE}"


def settings(trial: ExportedTrial) -> dict[str, Any]:
    """Every key of the settings file."""
    config = trial.config
    train, validation = (f"rows/{split}.jsonl" for split in SPLITS)
    return {
        "model": trial.model,
        "use_hf": True,
        "model_revision": config.model.revision or "main",
        "torch_dtype": trial.dtype.name,
        **_quantization(trial),
        "dataset": [train],
        "val_dataset": [validation],
        "split_dataset_ratio": 0.0,
        "dataset_shuffle": False,
        "template": "dummy",
        "loss_scale": "default",
        "max_length": config.data.max_length,
        "truncation_strategy": "right",
        "packing": config.data.packing,
        "tuner_type": "lora",
        "lora_rank": config.lora.r,
        "lora_alpha": trial.alpha,
        "lora_dropout": config.lora.lora_dropout,
        "target_modules": list(trial.flat_targets),
        **({"target_parameters": list(trial.target_parameters)} if trial.target_parameters else {}),
        **({"modules_to_save": list(config.lora.modules_to_save)} if config.lora.modules_to_save else {}),
        "use_rslora": config.lora.use_rslora,
        "use_dora": config.lora.use_dora,
        "init_weights": str(config.lora.init_lora_weights).lower(),
        "lora_bias": config.lora.bias,
        **({"lorap_lr_ratio": ratio} if (ratio := config.training.loraplus_lr_ratio) else {}),
        "add_version": False,
        **({"early_stop_interval": patience} if (patience := config.training.early_stopping_patience) else {}),
        **training_arguments(trial),
        **({} if config.training.load_best_model_at_end else {"save_strategy": "epoch"}),
    }


def _quantization(trial: ExportedTrial) -> dict[str, Any]:
    model = trial.config.model
    if model.quantization == "none":
        return {}
    if model.quantization == "int8":
        return {"quant_method": "bnb", "quant_bits": 8}
    return {
        "quant_method": "bnb",
        "quant_bits": 4,
        "bnb_4bit_quant_type": model.quantization,
        "bnb_4bit_use_double_quant": model.double_quant,
        "bnb_4bit_compute_dtype": trial.dtype.name,
    }
