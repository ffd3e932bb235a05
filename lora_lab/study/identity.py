"""When two trial configurations are the same training, however they were written."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from lora_lab.study.schedules import SCHEDULES

if TYPE_CHECKING:
    from lora_lab.study.settings import LoraSettings, TrainingSettings, TrialConfig

WITHOUT_EFFECT = {"logging_steps", "per_device_eval_batch_size"}
"""Training settings that no result depends on."""


def trial_identity(config: TrialConfig, modules: tuple[str, ...]) -> str:
    """A hash (64 hexadecimal digits) that is equal for configurations that train the same adapter.

    `modules` are the full names of what is adapted, as `adapted` gives them: `target_modules`, `target_parameters` and
    `layers` count only by what they resolve to, and alpha, its ratio and rsLoRA only by the scaling.
    """
    identity = {
        "model": config.model.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "training": _training(config.training),
        "lora": _lora(config.lora),
        "modules": sorted(modules),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _training(training: TrainingSettings) -> dict[str, object]:
    # When evaluations are made changes the weights only of a trial that leaves those of the best one.
    without_effect = WITHOUT_EFFECT if training.load_best_model_at_end else WITHOUT_EFFECT | {"eval_steps"}
    settings = training.model_dump(mode="json", exclude=without_effect)
    if not (training.warmup_ratio or training.warmup_steps):
        plain = {schedule.with_warmup: name for name, schedule in SCHEDULES.items()}
        settings["lr_scheduler_type"] = plain.get(training.lr_scheduler_type, training.lr_scheduler_type)
    return settings


def _lora(lora: LoraSettings) -> dict[str, object]:
    settings = lora.model_dump(
        mode="json",
        exclude={"lora_alpha", "alpha_ratio", "use_rslora", "target_modules", "target_parameters", "layers"},
    )
    # 12 digits, since a*sqrt(r)/r and a/sqrt(r) differ in the last bits. The factor moves the rounding
    # boundaries off the short decimals that people write: 1.5/4096 has 13 digits and could go either way.
    return settings | {"scaling": f"{lora.scaling * (1 + 4e-14):.12g}"}
