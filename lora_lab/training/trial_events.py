"""What an engine tells of a trial: the events of its steps and its milestones, alike on every engine."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, TypedDict

from lora_lab.common.activity import Interrupted
from lora_lab.common.errors import TrainingError
from lora_lab.study.events import ENDINGS, Diverged, Failed, Logged, Milestone, TrialEvent
from lora_lab.training.device import shortage_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from lora_lab.training.milestones import PlannedMilestone
    from lora_lab.training.trial import StepFigures, Trial


class Place(TypedDict):
    """Where a trial stands, as every event says it."""

    number: int
    step: int
    epoch: float


def at(trial: Trial, step: int | None = None) -> Place:
    """Where a trial stands after `step` optimizer steps, by default after those that it has made."""
    step = trial.progress.step if step is None else step
    return {"number": trial.number, "step": step, "epoch": trial.progress.plan.epoch(step)}


def step_events(trial: Trial, make_step: Callable[[], StepFigures]) -> Iterator[TrialEvent]:
    """Make an optimizer step and tell how it went.

    Args:
        trial: The trial.
        make_step: Makes the step and counts it; where it raises TrainingError, the trial has failed.
    """
    step = trial.progress.step + 1
    try:
        done = make_step()
    except TrainingError as error:
        yield Failed(**at(trial, step), reason=str(error))
        return
    if not done.finite:
        reason = f"loss {done.loss}, gradient norm {done.grad_norm} at optimizer step {step}"
        yield Diverged(**at(trial, step), reason=reason)
    elif trial.progress.is_logged:
        yield Logged(**at(trial, step), loss=done.loss, grad_norm=done.grad_norm, learning_rate=done.learning_rate)


def milestone_reached(
    trial: Trial, planned: PlannedMilestone, evaluation: int, metrics: Mapping[str, float], reason: str = ""
) -> Milestone:
    """Tell that a shorter run is read off here (with its final `metrics`), or branches off (with none)."""
    return Milestone(**at(trial), epochs=planned.epochs, evaluation=evaluation, metrics=metrics, reason=reason)


def events_until_memory_runs_out(
    events: Iterator[TrialEvent], discard: Callable[[int], None]
) -> tuple[list[TrialEvent], str | None]:
    """All events of a step, or those before memory ran out or the step was `Interrupted`.

    An evaluation that is interrupted is thrown away; it stays due, and is made by the next step, or after a restart.

    Args:
        events: What happens, each made when it is asked for; so what happened is told whatever comes after it.
        discard: Takes a trial that has ended out of the engine, which is done before the next event is asked for.

    Returns:
        The events, and why memory ran out, if it did.
    """
    told: list[TrialEvent] = []

    def tell() -> None:
        with suppress(Interrupted):
            for event in events:
                told.append(event)
                if isinstance(event, ENDINGS):
                    discard(event.number)

    return told, shortage_of_memory(tell)
