"""Where a running study stands: trials in training, counts, the best so far, and the time that is left."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_lab.analysis.verdict_words import STATE_WORDS
from lora_lab.analysis.wording import duration_text, measure_text, nats, one_line, plural, value_and_unit
from lora_lab.study.events import Evaluated, Logged, TrialEvent
from lora_lab.study.measures import EVAL_LOSS, MEASURES
from lora_lab.study.results import FINISHED_WITH_VALUE
from lora_lab.terminal.messages import (
    Heartbeat,
    RetrainingsPlanned,
    SessionOver,
    StudyBegan,
    Tick,
    TrialBegan,
    TrialOver,
    Working,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_lab.common.activity import Activity
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialState
    from lora_lab.study.settings import TrialConfig
    from lora_lab.terminal.messages import Message, SessionState


LEAST_WORK = 0.05
"""Of a trial; less tells nothing of how long the rest takes."""


@dataclass(slots=True)
class RunningTrial:
    """A trial in training, as far as it has come."""

    number: int
    config: TrialConfig
    label: str
    """The configuration in a few words."""
    is_retraining: bool = False
    step: int = 0
    epoch: float = 0.0
    loss: float | None = None
    eval_loss: float | None = None
    evaluation: int = 0
    """Number of the last evaluation; 0 before the first."""
    total_steps: int | None = None
    """Optimizer steps of the whole trial; None before they are known."""
    first: tuple[float, int] | None = None
    """When the trial's steps were first told of in this session, and how many were done then."""

    @property
    def share(self) -> float:
        """Part of the trial that is done."""
        if self.total_steps is not None:
            return min(1.0, self.step / self.total_steps)
        training = self.config.training
        done = self.step / training.max_steps if training.max_steps else self.epoch / training.num_train_epochs
        return min(1.0, done)

    @property
    def gained(self) -> float:
        """Part of the trial that this session has done."""
        before = self.first[1] / self.total_steps if self.first and self.total_steps else 0.0
        return self.share - before


@dataclass(slots=True)
class StudyProgress:
    """How far the study has come: its trials, evaluations and retrainings, which every view shows in part."""

    clock: Callable[[], float] = time.monotonic
    study_name: str = ""
    total: int = 0
    earlier: int = 0
    """Trials finished by an earlier run of the same study."""
    pack_size: int | None = None
    opened: float = 0.0
    """When this session began: to load, to look and to train."""
    began: float = 0.0
    """When it began to train; estimates of what is left start here."""
    tokens_per_second: float = 0.0
    tracking: str = ""
    running: dict[int, RunningTrial] = field(default_factory=dict)
    states: Counter[TrialState] = field(default_factory=Counter)
    measure: Measure = EVAL_LOSS
    """What the study judges."""
    best: tuple[float, int, str] | None = None
    """Value, number and configuration of the best single run so far, of which the verdict may think otherwise."""
    verdict_follows: bool = False
    rungs: dict[int, float] = field(default_factory=dict)
    """Best eval_loss by evaluation."""
    state: SessionState = "running"
    activity: Activity | None = None
    """What is being done."""
    activity_first: tuple[float, int] = (0.0, 0)
    """When that was first told of, and how many of its parts were done then."""
    moved: float = 0.0
    """When something was last done: a step, or a part of other work."""

    def __post_init__(self) -> None:
        self.opened = self.began = self.moved = self.clock()

    def take(self, message: Message) -> None:
        """Take in one message; what is shown only once changes nothing here."""
        self.moved = self.clock() if isinstance(message, (Tick, Working, TrialEvent)) else self.moved
        match message:
            case StudyBegan():
                self.study_name, self.total, self.earlier = message.study_name, message.total_trials, message.done
                self.pack_size, self.began = message.pack_size, self.clock()
                self.measure = message.measure
            case TrialBegan(number, config, label, is_retraining):
                self.running[number] = RunningTrial(number, config, label, is_retraining)
            case RetrainingsPlanned():
                self.total += message.count
            case Tick():
                self.tokens_per_second, self.tracking = message.tokens_per_second, message.tracking
                self._take_steps(message.steps)
            case Working(activity):
                self._take_activity(activity)
            case Heartbeat(state):
                self.state = state
            case TrialOver():
                self._take_ending(message)
            case SessionOver(verdict_follows):
                self.verdict_follows = verdict_follows
            case TrialEvent():
                self._take_event(message)

    def _take_activity(self, activity: Activity) -> None:
        if self.activity is None or activity.what != self.activity.what:
            self.activity_first = (self.clock(), activity.done)
        self.activity = activity

    def _take_steps(self, steps: Mapping[int, tuple[int, int]]) -> None:
        for number, (step, total) in steps.items():
            trial = self.running.get(number)
            if trial is not None:
                trial.step, trial.total_steps = step, total
                trial.first = trial.first or (self.clock(), step)

    def _take_event(self, event: TrialEvent) -> None:
        trial = self.running.get(event.number)
        if trial is None:
            return
        trial.step, trial.epoch = event.step, event.epoch
        if isinstance(event, Logged):
            trial.loss = event.loss
        elif isinstance(event, Evaluated):
            trial.eval_loss, trial.evaluation = event.eval_loss, event.evaluation
            self.rungs[event.evaluation] = min(event.eval_loss, self.rungs.get(event.evaluation, math.inf))

    def _take_ending(self, over: TrialOver) -> None:
        """Count the trial; of one that did not train, the reason says what it is."""
        trial, value = self.running.pop(over.number, None), over.value
        self.states[over.state] += 1
        if over.state not in FINISHED_WITH_VALUE or value is None or not math.isfinite(value):
            return
        if trial is not None and trial.is_retraining:
            return  # none of these is the best of the search
        if self.best is None or self.measure.gain_over(self.best[0], value) > 0:
            self.best = (value, over.number, trial.label if trial else over.reason)

    def behind(self, trial: RunningTrial) -> float | None:
        """Nats by which a trial's last evaluation is above the best one that any trial had at that rung."""
        return None if trial.eval_loss is None else trial.eval_loss - self.rungs[trial.evaluation]

    def left_of_trial(self, trial: RunningTrial) -> float | None:
        """Estimated seconds to the end of a trial; None before its first steps."""
        if trial.first is None or trial.total_steps is None:
            return None
        began, step = trial.first
        return _left(self.clock() - began, trial.step - step, trial.total_steps - trial.step)

    @property
    def left_of_activity(self) -> float | None:
        """Estimated seconds to the end of what is being done; None where that is not known."""
        if self.activity is None or self.activity.total is None:
            return None
        began, done = self.activity_first
        return _left(self.clock() - began, self.activity.done - done, self.activity.total - self.activity.done)

    @property
    def done(self) -> int:
        """The number of trials that need no more work, earlier runs included."""
        return self.earlier + self.states.total()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this session began."""
        return self.clock() - self.opened

    @property
    def left_s(self) -> float | None:
        """Estimated seconds of training to the end, from what this run trained.

        None before that is a twentieth of a trial, and where all is trained: evaluations and the report take time too.
        """
        running = tuple(self.running.values())
        gained = self.states.total() + sum(trial.gained for trial in running)
        left = self.total - self.earlier - self.states.total() - sum(trial.share for trial in running)
        return (self.clock() - self.began) * left / gained if gained >= LEAST_WORK and left > 0 else None

    def summary(self) -> str:
        """How the run ended, on one line."""
        counts = ", ".join(f"{count} {STATE_WORDS[state]}" for state, count in self.states.items())
        parts = [f"{self.study_name}: {self.done}/{self.total} trials" + (f" ({counts})" if counts else "")]
        if self.best and not self.verdict_follows:
            value = f"{self.measure.label} {measure_text(self.measure, self.best[0])}"
            parts.append(f"best single run so far trial {self.best[1]}: {value}")
        return "; ".join([*parts, duration_text(self.elapsed_s)])


def _left(elapsed_s: float, done: int, left: int) -> float | None:
    """Seconds that so many parts will take, if `done` ones took so long; None where there is nothing to tell."""
    return elapsed_s / done * left if done > 0 and left > 0 else None


def base_text(values: Mapping[str, float]) -> str:
    """What was measured of the bare base, on one line."""
    known = {MEASURES[name]: value for name, value in values.items() if name in MEASURES}
    said = [f"{measure.label} {value_and_unit(measure, value)}" for measure, value in known.items()]
    general = values.get("forgetting_loss")
    if general is not None:
        said.append(f"{nats(general)} on the general text of data.forgetting")
    return f"before training, the bare base has {', '.join(said)}"


def retrainings_text(planned: RetrainingsPlanned, progress: StudyProgress) -> str:
    """Which trials are trained again, on one line."""
    numbers = planned.numbers
    chosen = f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(map(str, numbers))}"
    before = "search done; " if progress.done + planned.count >= progress.total else ""
    return f"{before}{plural(planned.count, 'retraining')} of {chosen} with fresh seeds"


def evaluation_text(event: Evaluated) -> str:
    """What an evaluation measured, on one line."""
    scores = (f", {MEASURES[name].label} {measure_text(MEASURES[name], value)}" for name, value in event.scores.items())
    failures = (f"; {one_line(reason)}" for reason in event.failures.values())
    return f"eval_loss {nats(event.eval_loss)}{''.join(scores)}{''.join(failures)}"


def ending_text(over: TrialOver, measure: Measure) -> str:
    """How a trial ended, on one line."""
    if over.state == "shared" and over.reason and over.value is not None:
        measured = f"{measure.label} {measure_text(measure, over.value)}"
        return f"trial {over.number} is {one_line(over.reason)}: {measured}"
    value = "" if over.value is None else f", {measure.label} {measure_text(measure, over.value)}"
    return f"trial {over.number} {STATE_WORDS[over.state]}{value}" + (
        f": {one_line(over.reason)}" if over.reason else ""
    )
