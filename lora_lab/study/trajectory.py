"""Trajectories: a run of several epochs goes through shorter runs, where its learning rate does not know its length.

Where the schedule shares all steps (a constant rate, after a warm-up of so many steps or none), a shorter run is read
off at the milestone where it ends. Where it shares the steps to the decay, the shorter run branches off at the
milestone where its own decay begins, and only the rest is trained apart. Everywhere else, and where the warm-up is a
share of all steps, each number of epochs is a training of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.study.identity import trial_identity
from lora_lab.study.space import choices, options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.study.schedules import Shares
    from lora_lab.study.settings import TrainingSettings, TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

EPOCHS = "num_train_epochs"
DECIDING = ("lr_scheduler_type", "warmup_ratio", "max_steps", "eval_steps")
"""The training settings that `shares` reads."""


def shares(training: TrainingSettings) -> Shares:
    """What a run has in common with the runs of more epochs under the same settings: the rule of trajectories.

    `eval_steps` counts evaluations by steps, so no evaluation is sure to fall on the end of a shorter run, and
    `max_steps` ends all runs at one step.
    """
    if training.max_steps is not None or training.eval_steps is not None:
        return "nothing"
    return shared_rates(training)


def shared_rates(training: TrainingSettings) -> Shares:
    """What a run's learning rates have in common with those of longer runs under the same settings."""
    return "nothing" if training.warmup_ratio else training.schedule.shares


def choice_shares(spec: StudySpec, chosen: Mapping[str, Value]) -> Shares:
    """What `shares` says of a choice of parameter values, which need not make a configuration that a trial can have."""
    deciding = {name: chosen[name] for name in DECIDING if name in chosen}
    return shares(spec.training.model_copy(update=deciding))


def trajectory_identity(config: TrialConfig, modules: tuple[str, ...]) -> str | None:
    """A hash that is equal for the runs of one trajectory: they differ in `num_train_epochs` alone.

    Whatever `trial_identity` takes no notice of may differ too. None where a run shares nothing with longer ones.
    """
    if shares(config.training) == "nothing":
        return None
    return trial_identity(config.changed(training={EPOCHS: 1}), modules)


def shorter_choices(spec: StudySpec, chosen: Mapping[str, Value]) -> list[dict[str, Value]]:
    """The choices that make shorter runs on the trajectory of this one and that the study may ask for, shortest first.

    A number of epochs under which other parameters are searched than here (`when`) is another configuration, and so
    not among them.
    """
    if EPOCHS not in chosen or choice_shares(spec, chosen) == "nothing":
        return []
    searched = sorted(int(str(epochs)) for epochs in options(spec.sweep.parameters[EPOCHS]))
    shorter = [{**chosen, EPOCHS: epochs} for epochs in searched if epochs < int(str(chosen[EPOCHS]))]
    return [choice for choice in shorter if _same_parameters(spec, choice)]


def _same_parameters(spec: StudySpec, choice: Mapping[str, Value]) -> bool:
    return all(spec.active(name, choice) == (name in choice) for name in spec.sweep.parameters)


def trajectory_note(spec: StudySpec) -> str | None:
    """What is shared between numbers of epochs, in words; None where these are not searched."""
    if EPOCHS not in spec.sweep.parameters:
        return None
    schedules = [str(one) for one in choices(spec, "lr_scheduler_type")]
    first = {name: choices(spec, name)[0] for name in DECIDING}
    shared = {one: shares(spec.training.model_copy(update={**first, "lr_scheduler_type": one})) for one in schedules}
    sharing = [one for one in schedules if shared[one] != "nothing"]
    if not sharing:
        return f"every number of epochs is trained apart: {_hindrance(spec, schedules)}"
    said = []
    if "all" in shared.values():
        said.append("runs of fewer epochs are read off the longest one")
    if "to the decay" in shared.values():
        said.append("runs of fewer epochs branch off the longest one where their decay begins")
    if len(sharing) < len(schedules):
        said.append(f"that is under {', '.join(sharing)}; under the others each number of epochs is trained apart")
    return "; ".join(said)


def _hindrance(spec: StudySpec, schedules: list[str]) -> str:
    for name in ("max_steps", "eval_steps"):
        if any(value is not None for value in choices(spec, name)):
            return f"{name} is set"
    if any(choices(spec, "warmup_ratio")):
        return "the warm-up is a share of all steps (warmup_ratio; warmup_steps would let runs be shared)"
    return f"under {', '.join(schedules)} the rate depends on the number of all steps"
