"""The README of an export folder: what it is, how it is run, and what is not as it was in the study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.wording import config_label, nats
from lora_lab.exporters.targets import STANDALONE, TRAINERS, package
from lora_lab.exporters.trial import BASE
from lora_lab.study.measures import in_unit_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.exporters.table import Remark
    from lora_lab.exporters.targets import TargetName
    from lora_lab.exporters.trial import ExportedTrial


def readme(trial: ExportedTrial, target: TargetName, command: str, warnings: Sequence[Remark]) -> str:
    """Markdown without any path of this machine."""
    parts = [f"# {trial.title[0].upper()}{trial.title[1:]}, for {package(target)}", _what(trial), _how(command)]
    if target in STANDALONE:
        parts.append("The base's weights are in it: it needs no base beside it.")
    elif trial.local_base is not None:
        parts.append(
            f"`{BASE}` is a link to the folder of the base model, {trial.model_words}. On another machine, put the "
            "model, or a link to it, in its place."
        )
    if target in TRAINERS:
        parts.append(_steps(trial))
    if warnings:
        parts.append("Not exactly as in the study:\n\n" + "\n".join(f"- {remark.text}" for remark in warnings))
    parts.append("Everything else is written as the trial had it.")
    return "\n\n".join(parts) + "\n"


def _what(trial: ExportedTrial) -> str:
    label = config_label(trial.config, trial.result.params)
    loss = trial.result.eval_loss
    measured = "It has no result." if loss is None else f"eval_loss {nats(loss)} nats per token on held-out data."
    return f"{label}, on {trial.model_words}. {in_unit_of(trial.config.model.task_type, measured)}"


def _how(command: str) -> str:
    return f"Run in this folder:\n\n```sh\n{command}\n```"


def _steps(trial: ExportedTrial) -> str:
    return (
        f"{trial.total_steps} optimizer steps over {len(trial.tokens.train)} training rows; measured on "
        f"{len(trial.tokens.eval)} held-out examples."
    )
