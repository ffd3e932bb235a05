"""What people see of a study and its trials in MLflow: names, parameters and tags, made from the settings."""

from __future__ import annotations

import json
from importlib import metadata
from typing import TYPE_CHECKING

from lora_lab.study.events import Evaluated
from lora_lab.tracking.records import DatasetInput, StudyStarted, TrialStarted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

PACKAGES = ("lora-lab", "torch", "transformers", "peft", "optuna", "mlflow", "bitsandbytes")
NAME_WIDTH = 32


def versions() -> dict[str, str]:
    """The installed version of each package that a result depends on; nothing is imported for it."""
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    return {name: metadata.version(name) for name in PACKAGES if name in installed}


def _short(value: str | Sequence[object]) -> str:
    text = value if isinstance(value, str) else "+".join(map(str, value))
    return text if len(text) <= NAME_WIDTH else f"{text[: NAME_WIDTH - 3]}..."


def trial_name(number: int, config: TrialConfig) -> str:
    """Such as `trial-0007 r=16 a=32 all-linear e=2`; the layers stand in it where they are not all."""
    lora = config.lora
    layers = "" if lora.layers == "all" else f" {_short(lora.layers)}"
    quantization = "" if config.model.quantization == "none" else f" {config.model.quantization}"
    return (
        f"trial-{number:04d} r={lora.r} a={lora.alpha:g} {_short(lora.target_modules)}{layers} "
        f"e={config.training.num_train_epochs}{quantization}"
    )


def trial_params(config: TrialConfig, engine: str) -> dict[str, Value]:
    """The parameters of one trial by the names that LoRA users know."""
    lora, training, model = config.lora, config.training, config.model
    return {
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "alpha_ratio": lora.alpha / lora.r,
        "scaling": lora.scaling,
        "target_modules": lora.target_modules,
        "layers": lora.layers,
        "lora_dropout": lora.lora_dropout,
        "use_rslora": lora.use_rslora,
        "init_lora_weights": lora.init_lora_weights,
        "num_train_epochs": training.num_train_epochs,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.lr_scheduler_type,
        "per_device_train_batch_size": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "weight_decay": training.weight_decay,
        "seed": training.seed,
        "max_length": config.data.max_length,
        "quantization": model.quantization,
        "double_quant": model.double_quant,
        "engine": engine,
    }


def trial_started(
    number: int, config: TrialConfig, *, engine: str, tags: Mapping[str, str] | None = None
) -> TrialStarted:
    """The record with which a trial begins; `tags` tie it to others (config_id, confirms, ...)."""
    return TrialStarted(
        number=number, name=trial_name(number, config), params=trial_params(config, engine), tags=tags or {}
    )


def curve_read_off(result: TrialResult) -> list[Evaluated]:
    """The evaluations that a trial has from another one's training, at the steps at which it would have made them.

    None where evaluations are not the epochs.
    """
    epochs, steps = result.config.training.num_train_epochs, result.metrics.get("steps")
    if result.source is None or steps is None or list(result.curve) != list(range(1, epochs + 1)):
        return []
    return [
        Evaluated(
            number=result.number,
            step=round(steps * epoch / epochs),
            epoch=float(epoch),
            evaluation=epoch,
            eval_loss=loss,
        )
        for epoch, loss in result.curve.items()
    ]


def study_started(
    spec: StudySpec, *, datasets: Sequence[DatasetInput] = (), tags: Mapping[str, str] | None = None
) -> StudyStarted:
    """The record with which a study begins: fixed settings as params, what a resume may change as tags."""
    sections = {name: getattr(spec, name).model_dump(mode="json") for name in ("model", "data", "training", "lora")}
    params = {
        name if section == "model" else f"{section}.{name}": value if isinstance(value, str) else json.dumps(value)
        for section, values in sections.items()
        for name, value in values.items()
        if value is not None
    }
    searched = {
        f"sweep.{name}": json.dumps(parameter.model_dump(mode="json", exclude_defaults=True))
        for name, parameter in spec.sweep.parameters.items()
    }
    sweep = {
        "lora_lab.sampler": spec.sweep.sampler,
        "lora_lab.pruner": spec.sweep.pruner,
        "lora_lab.n_trials": str(spec.sweep.n_trials or "grid"),
        "lora_lab.metric": ", ".join(f"{metric.goal} {metric.name}" for metric in spec.sweep.metric),
    }
    packages = {f"lora_lab.version.{name}": version for name, version in versions().items()}
    return StudyStarted(
        question=spec.question,
        params=params | searched,
        tags=sweep | packages | dict(tags or {}),
        datasets=tuple(datasets),
    )
