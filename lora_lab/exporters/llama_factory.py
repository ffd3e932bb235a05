"""LLaMA-Factory: `llamafactory-cli train llamafactory.yaml`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_lab.exporters.arguments import training_arguments
from lora_lab.exporters.files import SPLITS, closed_rows, token_rows, write_rows, write_yaml

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

FILE = "llamafactory.yaml"
TOKENS = "tokens"
NAMES = {"train": "trial_train", "validation": "trial_validation"}
NOT_ITS_OWN = ("gradient_checkpointing", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs")


def write(trial: ExportedTrial, folder: Path) -> str:
    """Write settings and data; the launch command."""
    rows = trial.data_form == "rows"
    if rows:
        examples = trial.examples
        write_rows(folder, [closed_rows(part.examples, trial.specials) for part in (examples.train, examples.eval)])
        (folder / "rows" / "dataset_info.json").write_text(json.dumps(_columns(trial), indent=2) + "\n")
    else:
        _write_arrow(trial, folder / TOKENS)
    write_yaml(folder / FILE, trial, "llama-factory", settings(trial, rows=rows))
    return f"llamafactory-cli train {FILE}"


def _write_arrow(trial: ExportedTrial, folder: Path) -> None:
    """Tokens as the package keeps its own."""
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()  # the door says what it wrote
    tokens = trial.unpacked_tokens
    parts = zip(SPLITS, (tokens.train, tokens.eval), strict=True)
    DatasetDict({name: Dataset.from_list(list(token_rows(part))) for name, part in parts}).save_to_disk(str(folder))


def settings(trial: ExportedTrial, *, rows: bool) -> dict[str, Any]:
    """Every key of the settings file."""
    config = trial.config
    arguments = training_arguments(trial)
    return {
        "stage": "pt" if rows and trial.row_format == "text" else "sft",
        "do_train": True,
        "do_eval": True,
        "model_name_or_path": trial.model,
        "model_revision": config.model.revision or "main",
        "trust_remote_code": False,
        **_quantization(trial),
        "dataset": NAMES["train"],
        "eval_dataset": NAMES["validation"],
        **({"dataset_dir": "rows"} if rows else {"tokenized_path": TOKENS}),
        "template": "empty",
        "cutoff_len": config.data.max_length,
        "packing": config.data.packing,
        "neat_packing": config.data.packing,
        "train_on_prompt": False,
        "mask_history": False,
        "finetuning_type": "lora",
        "lora_rank": config.lora.r,
        "lora_alpha": trial.alpha,
        "lora_dropout": config.lora.lora_dropout,
        "lora_target": ",".join(trial.flat_targets),
        **({"additional_target": ",".join(config.lora.modules_to_save)} if config.lora.modules_to_save else {}),
        "use_rslora": config.lora.use_rslora,
        "use_dora": config.lora.use_dora,
        **_init(trial),
        **({"loraplus_lr_ratio": ratio} if (ratio := config.training.loraplus_lr_ratio) else {}),
        **({"early_stopping_steps": patience} if (patience := config.training.early_stopping_patience) else {}),
        "disable_gradient_checkpointing": not config.training.gradient_checkpointing,
        "use_reentrant_gc": False,
        "upcast_layernorm": config.model.quantization != "none",
        "flash_attn": "sdpa",
        "overwrite_cache": False,
        "plot_loss": False,
        **{name: value for name, value in arguments.items() if name not in NOT_ITS_OWN},
        **_scheduler(trial),
    }


def _scheduler(trial: ExportedTrial) -> dict[str, Any]:
    """Both step counts: without the stable one it takes a third of all steps."""
    decay = trial.decay_steps
    if decay is None:
        return {}
    stable = trial.total_steps - trial.warmup_steps - decay
    return {"lr_scheduler_kwargs": {"num_stable_steps": stable, "num_decay_steps": decay}}


def _init(trial: ExportedTrial) -> dict[str, Any]:
    pissa = trial.config.lora.init_lora_weights == "pissa"
    return {"pissa_init": pissa} | ({"pissa_iter": -1, "pissa_convert": False} if pissa else {})


def _quantization(trial: ExportedTrial) -> dict[str, Any]:
    model = trial.config.model
    if model.quantization == "none":
        return {}
    four = model.quantization != "int8"
    kind = {"quantization_type": model.quantization, "double_quantization": model.double_quant} if four else {}
    return {"quantization_bit": 4 if four else 8, "quantization_method": "bnb", **kind}


def _columns(trial: ExportedTrial) -> dict[str, Any]:
    """`dataset_info.json`: which columns are what."""
    text = trial.row_format == "text"
    columns = {"prompt": "text"} if text else {"prompt": "prompt", "query": None, "response": "completion"}
    return {
        NAMES[split]: {"file_name": f"{split}.jsonl", "formatting": "alpaca", "columns": columns} for split in SPLITS
    }
