"""A script that needs transformers and peft alone: it says all that a trial can have, the order of examples too."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.exporters.arguments import early_stopping, training_arguments
from lora_lab.exporters.files import heading, write_tokens
from lora_lab.exporters.scripts import fill, template
from lora_lab.study.settings import LoftQSettings

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

FILE = "train_peft.py"


def write(trial: ExportedTrial, folder: Path) -> str:
    """Write script and tokens; the launch command."""
    write_tokens(folder, trial, packed=True)
    task = "classes" if trial.config.model.classifies else "text"
    settings = {
        "auto": "AutoModelForSequenceClassification" if trial.config.model.classifies else "AutoModelForCausalLM",
        "task": template(f"train_peft_{task}.py").strip(),
        "model": {
            "pretrained_model_name_or_path": trial.model,
            "revision": trial.config.model.revision or "main",
            "use_safetensors": True,
            "trust_remote_code": False,
            **classes(trial),
        },
        "dtype": trial.dtype.name,
        "quantization": quantization(trial),
        "lora": lora(trial),
        "loraplus": trial.config.training.loraplus_lr_ratio,
        "early_stopping": early_stopping(trial),
        "training": training_arguments(trial)
        | {
            "logging_nan_inf_filter": False,
            "remove_unused_columns": False,
            "average_tokens_across_devices": False,
            "dataloader_pin_memory": False,
        },
    }
    (folder / FILE).write_text(fill(FILE, heading(trial, "peft"), settings), encoding="utf-8")
    return f"python {FILE}"


def classes(trial: ExportedTrial) -> dict[str, Any]:
    """What `from_pretrained` has to know of the classes of a trial; nothing for one that learns text."""
    labels = trial.config.model.labels
    if labels is None:
        return {}
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {name: index for index, name in enumerate(labels)},
        "problem_type": "single_label_classification",
        "pad_token_id": trial.tokenizer.pad_token_id,
    }


def lora(trial: ExportedTrial) -> dict[str, Any]:
    """Keywords of `peft.LoraConfig`."""
    settings = trial.config.lora
    layers = trial.layers_to_transform
    return {
        "task_type": trial.config.model.task_type,
        "r": settings.r,
        "lora_alpha": trial.alpha,
        "lora_dropout": settings.lora_dropout,
        "target_modules": list(trial.target_modules),
        "layers_to_transform": None if layers is None else list(layers),
        **({"target_parameters": list(trial.target_parameters)} if trial.target_parameters else {}),
        "use_rslora": settings.use_rslora,
        "use_dora": settings.use_dora,
        "init_lora_weights": settings.init_lora_weights,
        "loftq_config": loftq(trial),
        "bias": settings.bias,
        "modules_to_save": list(settings.modules_to_save) if settings.modules_to_save else None,
    }


def loftq(trial: ExportedTrial) -> dict[str, int]:
    """What `peft.LoraConfig` takes as `loftq_config`: nothing without LoftQ."""
    if trial.config.lora.init_lora_weights != "loftq":
        return {}
    return (trial.config.lora.loftq_config or LoftQSettings()).model_dump()


def quantization(trial: ExportedTrial) -> dict[str, Any] | None:
    """Keywords of `transformers.BitsAndBytesConfig`, None for a base that is not quantized."""
    model = trial.config.model
    if model.quantization == "none":
        return None
    if model.quantization == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": model.quantization,
        "bnb_4bit_use_double_quant": model.double_quant,
        "bnb_4bit_compute_dtype": trial.dtype.name,
    }
