"""Trajectories: a run of several epochs contains the runs of fewer epochs, where its rate does not know its length.

Under a constant rate, after a warm-up of so many steps or none, the shorter run is read off at its last epoch. Under
warmup_stable_decay it parts from the longer one where its own decay begins, and only that is trained apart. Under
every other schedule, and where the warm-up is a share of all steps, each number of epochs is a training of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.study.identity import trial_identity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from lora_lab.study.settings import TrainingSettings, TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

EPOCHS = "num_train_epochs"
DECIDING = ("lr_scheduler_type", "warmup_ratio", "max_steps", "eval_steps")
"""The settings that decide whether runs of fewer epochs are contained in longer ones."""
READ_OFF_SCHEDULES = ("constant", "constant_with_warmup")
BRANCHING_SCHEDULES = ("warmup_stable_decay",)
SHORTER_RUNS = "epochs-*"
"""The names of the folders in which shorter runs leave their files."""


def contains_shorter_runs(training: TrainingSettings) -> bool:
    """Whether a run under these settings contains, whole or in part, the runs of fewer epochs."""
    return _contains({name: getattr(training, name) for name in DECIDING})


def choice_contains_shorter_runs(spec: StudySpec, chosen: Mapping[str, Value]) -> bool:
    """The same of a choice of parameter values, which need not make a configuration that a trial can have."""
    return _contains({name: chosen.get(name, getattr(spec.training, name)) for name in DECIDING})


def _contains(settings: Mapping[str, object]) -> bool:
    return (
        settings["lr_scheduler_type"] in READ_OFF_SCHEDULES + BRANCHING_SCHEDULES
        and not settings["warmup_ratio"]
        and settings["max_steps"] is None
        and settings["eval_steps"] is None
    )


def trajectory_identity(config: TrialConfig, modules: tuple[str, ...]) -> str | None:
    """A hash that is equal for configurations that differ in `num_train_epochs` alone, as `trial_identity` sees them.

    None where a longer run does not contain a shorter one.
    """
    if not contains_shorter_runs(config.training):
        return None
    training = config.training.model_copy(update={EPOCHS: 1})
    return trial_identity(config.model_copy(update={"training": training}), modules)


def shorter_choices(spec: StudySpec, chosen: Mapping[str, Value]) -> list[dict[str, Value]]:
    """The choices with fewer epochs that the study may ask for and that a run of this one contains, shortest first.

    A number of epochs under which other parameters are searched than here (`when`) is another configuration, and so
    not among them.
    """
    if EPOCHS not in chosen or not choice_contains_shorter_runs(spec, chosen):
        return []
    shorter = [{**chosen, EPOCHS: epochs} for epochs in _searched_epochs(spec) if epochs < int(str(chosen[EPOCHS]))]
    return [choice for choice in shorter if _same_parameters(spec, choice)]


def _searched_epochs(spec: StudySpec) -> Iterable[int]:
    parameter = spec.sweep.parameters[EPOCHS]
    if parameter.values is not None:
        return sorted(value for value in parameter.values if isinstance(value, int))
    assert parameter.min is not None
    assert parameter.max is not None
    return range(int(parameter.min), int(parameter.max) + 1, int(parameter.step or 1))


def _same_parameters(spec: StudySpec, choice: Mapping[str, Value]) -> bool:
    return all(spec.active(name, choice) == (name in choice) for name in spec.sweep.parameters)


def folder_of_shorter(trial_folder: Path, epochs: int) -> Path:
    """Where a shorter run's files lie in the folder of the trial that contains it, until they are a trial's own."""
    return trial_folder / f"epochs-{epochs:04d}"


def trajectory_note(spec: StudySpec) -> str | None:
    """What is shared between numbers of epochs, in words; None where these are not searched."""
    if EPOCHS not in spec.sweep.parameters:
        return None
    schedules = _candidates(spec, "lr_scheduler_type")
    fixed = {name: next(iter(_candidates(spec, name))) for name in DECIDING}
    sharing = [one for one in schedules if _contains({**fixed, "lr_scheduler_type": one})]
    if not sharing:
        return f"every number of epochs is trained apart: {_hindrance(spec, schedules)}"
    said = []
    if any(one in READ_OFF_SCHEDULES for one in sharing):
        said.append("runs of fewer epochs are read off the longest one")
    if any(one in BRANCHING_SCHEDULES for one in sharing):
        said.append("runs of fewer epochs branch off the longest one where their decay begins")
    if len(sharing) < len(schedules):
        said.append(f"that is under {', '.join(sharing)}; under the others each number of epochs is trained apart")
    return "; ".join(said)


def _hindrance(spec: StudySpec, schedules: tuple[str, ...]) -> str:
    for name in ("max_steps", "eval_steps"):
        if any(value is not None for value in _candidates(spec, name)):
            return f"{name} is set"
    if any(_candidates(spec, "warmup_ratio")):
        return "the warm-up is a share of all steps (warmup_ratio; warmup_steps would let runs be shared)"
    return f"under {', '.join(schedules)} the rate depends on the number of all steps"


def _candidates(spec: StudySpec, name: str) -> tuple[str, ...]:
    parameter = spec.sweep.parameters.get(name)
    if parameter is None:
        return (getattr(spec.training, name),)
    values = parameter.values or (parameter.min, parameter.max)
    return tuple(values)  # type: ignore[arg-type]  # of the kind of that field, which the study's check saw to
