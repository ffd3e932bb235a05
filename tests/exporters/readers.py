"""What an export says, read back into the words of a study: one reader for each format of settings."""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

import yaml

from lora_lab.study.settings import TrialConfig

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

TOKENS = {"train": "train", "eval": "validation"}


def written(trial: ExportedTrial) -> TrialConfig:
    """A trial's configuration in the only way in which an export can say it: full names, steps, a dtype."""
    config = trial.config
    lora = config.lora.model_copy(
        update={
            "target_modules": trial.modules,
            "layers": "all",
            "lora_alpha": float(trial.alpha),
            "alpha_ratio": None,
        }
    )
    training = config.training.model_copy(
        update={
            "warmup_ratio": 0.0,
            "warmup_steps": trial.warmup_steps,
            "decay_ratio": None,
            "decay_steps": trial.decay_steps,
            "max_steps": config.training.max_steps or (trial.total_steps if config.data.packing else None),
        }
    )
    model = config.model.model_copy(update={"model_name_or_path": trial.model, "dtype": trial.dtype.name})
    data = {"train": "train", "eval": {"path": "validation"}, "max_length": config.data.max_length}
    return TrialConfig.model_validate(
        {
            "model": model.model_dump() | {"revision": config.model.revision},
            "data": data | {"packing": config.data.packing},
            "training": training.model_dump(),
            "lora": lora.model_dump(),
        }
    )


def shared_arguments(found: dict[str, Any]) -> dict[str, Any]:
    """`training` from what has the names of `transformers.TrainingArguments`."""
    same = (
        *("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
        *("lr_scheduler_type", "warmup_steps", "gradient_checkpointing", "weight_decay", "adam_beta1", "adam_beta2"),
        *("adam_epsilon", "max_grad_norm", "seed", "per_device_eval_batch_size", "logging_steps"),
    )
    optimizers = {"adamw_torch_fused": "adamw_torch", "adamw_8bit": "adamw_8bit", "sgd": "sgd"}
    assert found["data_seed"] == found["seed"]
    assert (found["eval_strategy"] == "epoch") == ("eval_steps" not in found)
    kept = {"load_best_model_at_end": found.get("load_best_model_at_end", False)}
    if kept["load_best_model_at_end"]:
        assert found["save_strategy"] == found["eval_strategy"]
        assert "eval_steps" not in found or found["save_steps"] == found["eval_steps"]
        assert not found["greater_is_better"]
        kept["metric_for_best_model"] = found["metric_for_best_model"]
    return (
        {name: found[name] for name in same}
        | kept
        | {
            "optim": optimizers[found["optim"]],
            "max_steps": found.get("max_steps"),
            "eval_steps": found.get("eval_steps"),
            "decay_steps": found.get("lr_scheduler_kwargs", {}).get("num_decay_steps"),
        }
    )


def names(trial: ExportedTrial, endings: list[str], layers: list[int] | None) -> list[str]:
    """Full names by PEFT's rule for a list."""
    return [
        name
        for name in trial.linears.shapes
        if any(name == ending or name.endswith(f".{ending}") for ending in endings)
        and (layers is None or trial.linears.layer_of(name) in layers)
    ]


def read_peft(folder: Path, trial: ExportedTrial) -> dict[str, Any]:
    script = runpy.run_path(str(folder / "train_peft.py"), run_name="read")
    lora, training = dict(script["LORA"]), script["TRAINING"]
    assert lora.pop("task_type") == "CAUSAL_LM"
    lora["target_modules"] = names(trial, lora["target_modules"], lora.pop("layers_to_transform"))
    lora["loftq_config"] = lora["loftq_config"] or None
    return {
        "model": model(
            script["MODEL"]["pretrained_model_name_or_path"],
            script["MODEL"]["revision"],
            str(script["DTYPE"]).removeprefix("torch."),
            script["QUANTIZATION"] or {},
        ),
        "training": shared_arguments(training)
        | {"loraplus_lr_ratio": script["LORAPLUS_LR_RATIO"]}
        | (script["EARLY_STOPPING"] or {}),
        "lora": lora,
    }


def model(name: str, revision: str, dtype: str, quantization: dict[str, Any]) -> dict[str, Any]:
    kind = "int8" if quantization.get("load_in_8bit") else quantization.get("bnb_4bit_quant_type", "none")
    return {
        "model_name_or_path": name,
        "revision": None if revision == "main" else revision,
        "dtype": dtype,
        "quantization": kind,
        "double_quant": quantization.get("bnb_4bit_use_double_quant", False),
    }


def read_trl(folder: Path, trial: ExportedTrial) -> dict[str, Any]:
    """The settings file as TRL's own parser understands it."""
    from trl.scripts import sft

    words = ["--config", str(folder / "trl.yaml"), "--use_cpu", "true"]  # bf16 is refused elsewhere without a GPU
    _, training, base, _ = sft.make_parser().parse_args_and_config(words)
    text = yaml.safe_load((folder / "trl.yaml").read_text())
    found = {name: getattr(training, name) for name in vars(training)} | {
        "max_steps": text.get("max_steps"),
        "optim": str(training.optim.value),
        "lr_scheduler_type": str(training.lr_scheduler_type.value),
        "eval_strategy": str(training.eval_strategy.value),
        "lr_scheduler_kwargs": training.lr_scheduler_kwargs or {},
    }
    if training.eval_steps is None or found["eval_strategy"] == "epoch":
        found.pop("eval_steps")
    targets = base.lora_target_modules
    four = {"bnb_4bit_quant_type": base.bnb_4bit_quant_type, "bnb_4bit_use_double_quant": base.use_bnb_nested_quant}
    quantization = {"load_in_8bit": base.load_in_8bit} | (four if base.load_in_4bit else {})
    return {
        "model": model(base.model_name_or_path, base.model_revision, base.dtype, quantization),
        "data": {"max_length": training.max_length, "packing": training.packing},
        "training": shared_arguments(found),
        "lora": {
            "r": base.lora_r,
            "lora_alpha": float(base.lora_alpha),
            "lora_dropout": base.lora_dropout,
            "target_modules": by_pattern(trial, targets) if isinstance(targets, str) else names(trial, targets, None),
            "modules_to_save": base.lora_modules_to_save,
            "use_rslora": base.use_rslora,
            "use_dora": base.use_dora,
        },
    }


def by_pattern(trial: ExportedTrial, pattern: str) -> list[str]:
    """Full names by PEFT's rule for a string."""
    import re

    return [name for name in trial.linears.shapes if re.fullmatch(pattern, name)]


def read_axolotl(folder: Path, trial: ExportedTrial) -> dict[str, Any]:
    text = yaml.safe_load((folder / "axolotl.yaml").read_text())
    assert [one["path"] for one in text["datasets"] + text["test_datasets"]] == [
        "tokens/train.jsonl",
        "tokens/validation.jsonl",
    ]
    dtypes = [name for name, key in DTYPE_KEYS.items() if text[key]]
    renamed = text | {
        "per_device_train_batch_size": text["micro_batch_size"],
        "per_device_eval_batch_size": text["eval_batch_size"],
        "num_train_epochs": text["num_epochs"],
        "lr_scheduler_type": text["lr_scheduler"],
        "optim": text["optimizer"],
        "data_seed": text["seed"],
    }
    loftq = text.get("peft", {}).get("loftq_config")
    quantization = text.get("bnb_config_kwargs", {}) | {"load_in_8bit": text["load_in_8bit"]}
    assert text["adapter"] == ("qlora" if text["load_in_4bit"] else "lora")
    return {
        "model": model(text["base_model"], text["model_revision"], dtypes[0], quantization),
        "data": {"max_length": text["sequence_len"], "packing": text["sample_packing"]},
        "training": shared_arguments(renamed)
        | {name: text.get(name) for name in ("loraplus_lr_ratio", "early_stopping_patience")},
        "lora": {
            "r": text["lora_r"],
            "lora_alpha": text["lora_alpha"],
            "lora_dropout": text["lora_dropout"],
            "target_modules": names(trial, text["lora_target_modules"], text.get("peft_layers_to_transform")),
            "modules_to_save": text.get("lora_modules_to_save"),
            "use_rslora": text["peft_use_rslora"],
            "use_dora": text["peft_use_dora"],
            "init_lora_weights": text["peft_init_lora_weights"],
            "loftq_config": loftq and loftq | {"loftq_iter": 1},
        },
    }


DTYPE_KEYS = {"float32": "float32", "bfloat16": "bf16", "float16": "fp16"}


def read_llama_factory(folder: Path, trial: ExportedTrial) -> dict[str, Any]:
    """Its files do not say the dtype of the base."""
    text = yaml.safe_load((folder / "llamafactory.yaml").read_text())
    assert text["tokenized_path"] == "tokens"
    bits = text.get("quantization_bit")
    four = {"bnb_4bit_quant_type": text.get("quantization_type")} if bits == 4 else {}
    quantization = four | {
        "load_in_8bit": bits == 8,
        "bnb_4bit_use_double_quant": text.get("double_quantization", False),
    }
    renamed = text | {"gradient_checkpointing": not text["disable_gradient_checkpointing"]}
    saved = text.get("additional_target")
    mixed = next((name for name in ("bfloat16", "float16") if text[DTYPE_KEYS[name]]), "float32")
    return {
        "model": model(text["model_name_or_path"], text["model_revision"], mixed, quantization),
        "data": {"max_length": text["cutoff_len"], "packing": text["packing"] and text["neat_packing"]},
        "training": shared_arguments(renamed)
        | {
            "loraplus_lr_ratio": text.get("loraplus_lr_ratio"),
            "early_stopping_patience": text.get("early_stopping_steps"),
        },
        "lora": {
            "r": text["lora_rank"],
            "lora_alpha": text["lora_alpha"],
            "lora_dropout": text["lora_dropout"],
            "target_modules": names(trial, text["lora_target"].split(","), None),
            "modules_to_save": saved and saved.split(","),
            "use_rslora": text["use_rslora"],
            "use_dora": text["use_dora"],
            "init_lora_weights": "pissa" if text["pissa_init"] else True,
        },
    }


def read_ms_swift(folder: Path, trial: ExportedTrial) -> dict[str, Any]:
    text = yaml.safe_load((folder / "swift.yaml").read_text())
    assert text["dataset"] + text["val_dataset"] == ["rows/train.jsonl", "rows/validation.jsonl"]
    quantization = {**text, "load_in_8bit": text.get("quant_bits") == 8}
    init = {"true": True, "false": False}.get(text["init_weights"], text["init_weights"])
    return {
        "model": model(text["model"], text["model_revision"], text["torch_dtype"], quantization),
        "data": {"max_length": text["max_length"], "packing": text["packing"]},
        "training": shared_arguments(text)
        | {
            "loraplus_lr_ratio": text.get("lorap_lr_ratio"),
            "early_stopping_patience": text.get("early_stop_interval"),
        },
        "lora": {
            "r": text["lora_rank"],
            "lora_alpha": text["lora_alpha"],
            "lora_dropout": text["lora_dropout"],
            "target_modules": names(trial, text["target_modules"], None),
            "modules_to_save": text.get("modules_to_save"),
            "use_rslora": text["use_rslora"],
            "use_dora": text["use_dora"],
            "init_lora_weights": init,
            "bias": text["lora_bias"],
        },
    }


def read_unsloth(folder: Path, trial: ExportedTrial) -> dict[str, Any]:
    """The literals of the script, which cannot be run without the package."""
    import ast

    tree = ast.parse((folder / "train_unsloth.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            found[name] = node.value.attr if isinstance(node.value, ast.Attribute) else ast.literal_eval(node.value)
    base, lora, training = found["MODEL"], dict(found["LORA"]), found["TRAINING"]
    assert lora.pop("random_state") == training["seed"]
    assert lora.pop("use_gradient_checkpointing") == training["gradient_checkpointing"]
    lora["target_modules"] = names(trial, lora["target_modules"], lora.pop("layers_to_transform"))
    quantization = (found["QUANTIZATION"] or {}) | {"load_in_8bit": base["load_in_8bit"]}
    assert base["load_in_4bit"] == (found["QUANTIZATION"] is not None)
    return {
        "model": model(base["model_name"], base["revision"], found["DTYPE"], quantization),
        "data": {"max_length": training["max_length"], "packing": training["packing"]},
        "training": shared_arguments(training)
        | {"loraplus_lr_ratio": found["LORAPLUS_LR_RATIO"]}
        | (found["EARLY_STOPPING"] or {}),
        "lora": lora | {"loftq_config": found["LOFTQ"] or None},
    }


READERS = {
    "peft": read_peft,
    "trl": read_trl,
    "axolotl": read_axolotl,
    "llama-factory": read_llama_factory,
    "unsloth": read_unsloth,
    "ms-swift": read_ms_swift,
}


def read(target: str, folder: Path, trial: ExportedTrial) -> TrialConfig:
    """What an export says, as a configuration; what it says nothing of has its default."""
    found = READERS[target](folder, trial)
    lora = found["lora"] | {"lora_alpha": float(found["lora"]["lora_alpha"])}
    # The script has max_length and packing in its tokens.
    data = found.get("data", {"max_length": trial.config.data.max_length, "packing": trial.config.data.packing})
    return TrialConfig.model_validate(
        found | {"lora": lora, "data": {"train": "train", "eval": {"path": "validation"}} | data}
    )
