"""What people see of a study and its trials in MLflow: names, parameters and tags, made from the settings."""

from __future__ import annotations

import json
from importlib import metadata
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import one_line, trial_label
from lora_lab.study.events import Evaluated
from lora_lab.study.sweep import SECTIONS
from lora_lab.study.trial_settings import settings_of
from lora_lab.tracking.records import DatasetInput, StudyStarted, TrialStarted

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

PACKAGES = ("lora-lab", "torch", "transformers", "peft", "optuna", "mlflow", "bitsandbytes")
NAME_WIDTH = 200
"""MLflow keeps 250 characters of a run's name."""


def versions() -> dict[str, str]:
    """The installed version of each package that a result depends on; nothing is imported for it."""
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    return {name: metadata.version(name) for name in PACKAGES if name in installed}


def trial_name(number: int, config: TrialConfig, searched: Collection[str]) -> str:
    """Such as `trial-0007 r=16 alpha=32 all-linear, 2 epochs, lr 2e-4, DoRA`."""
    return one_line(f"trial-{number:04d} {trial_label(config, searched)}", NAME_WIDTH)


def trial_params(config: TrialConfig, engine: str) -> dict[str, Value]:
    """Every setting of a trial that has a value, by the names of the study file, and the engine that trains it."""
    return {name: value for name, value in settings_of(config).items() if value is not None} | {"engine": engine}


def trial_started(
    number: int,
    config: TrialConfig,
    *,
    searched: Collection[str],
    engine: str,
    tags: Mapping[str, str] | None = None,
) -> TrialStarted:
    """The record with which a trial begins; `tags` tie it to others (config_id, confirms, ...)."""
    return TrialStarted(
        number=number, name=trial_name(number, config, searched), params=trial_params(config, engine), tags=tags or {}
    )


def curve_read_off(result: TrialResult) -> list[Evaluated]:
    """The evaluations that a trial has from another one's training, at the steps at which it would have made them.

    None where evaluations are not the epochs.
    """
    steps = result.metrics.get("steps")
    epochs = round(
        result.metrics.get("epochs", result.config.training.num_train_epochs)
    )  # fewer where it stopped early
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
    sections = {name: getattr(spec, name).model_dump(mode="json") for name in SECTIONS}
    if spec.evaluation.metrics:
        sections["evaluation"] = spec.evaluation.model_dump(mode="json")
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
        judged=spec.sweep.judged.name,
        searched=tuple(spec.sweep.parameters),
    )
