"""Unsloth: a script, because its command line lacks scheduler, clipping, layers and more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.exporters.arguments import early_stopping, training_arguments
from lora_lab.exporters.files import heading, write_tokens
from lora_lab.exporters.peft_script import loftq, quantization
from lora_lab.exporters.scripts import fill

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from lora_lab.exporters.trial import ExportedTrial

FILE = "train_unsloth.py"


def write(trial: ExportedTrial, folder: Path) -> str:
    """Write script and tokens; the launch command."""
    write_tokens(folder, trial)
    data = trial.config.data
    settings = {
        "model": {
            "model_name": trial.model,
            "revision": trial.config.model.revision or "main",
            "max_seq_length": data.max_length,
            "load_in_4bit": trial.config.model.quantization in ("nf4", "fp4"),
            "load_in_8bit": trial.config.model.quantization == "int8",
            "use_exact_model_name": True,
            "trust_remote_code": False,
        },
        "dtype": trial.dtype.name,
        "quantization": _four_bit(trial),
        "lora": _lora(trial),
        "loftq": loftq(trial),
        "loraplus": trial.config.training.loraplus_lr_ratio,
        "early_stopping": early_stopping(trial),
        "training": {
            **training_arguments(trial),
            "max_length": data.max_length,
            "packing": data.packing,
            "packing_strategy": "bfd",
            "eval_packing": False,
            "completion_only_loss": False,
            "assistant_only_loss": False,
        },
    }
    (folder / FILE).write_text(fill(FILE, heading(trial, "unsloth"), settings), encoding="utf-8")
    return f"python {FILE}"


def _four_bit(trial: ExportedTrial) -> dict[str, Any] | None:
    return quantization(trial) if trial.config.model.quantization in ("nf4", "fp4") else None


def _lora(trial: ExportedTrial) -> dict[str, Any]:
    settings, layers = trial.config.lora, trial.layers_to_transform
    return {
        "r": settings.r,
        "lora_alpha": trial.alpha,
        "lora_dropout": settings.lora_dropout,
        "target_modules": list(trial.target_modules),
        "layers_to_transform": None if layers is None else list(layers),
        # Without it, Unsloth would choose experts by the names of the modules.
        **({"target_parameters": list(trial.target_parameters)} if trial.linears.experts else {}),
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "init_lora_weights": settings.init_lora_weights,
        "bias": settings.bias,
        "modules_to_save": list(settings.modules_to_save) if settings.modules_to_save else None,
        "use_gradient_checkpointing": trial.config.training.gradient_checkpointing,
        "random_state": trial.config.training.seed,
    }
