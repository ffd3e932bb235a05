"""Where a running study stands: trials in training, counts, the best so far, and the time that is left."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_lab.analysis.verdict_words import STATE_WORDS
from lora_lab.analysis.wording import duration_text, measure_text, nats, one_line, plural
from lora_lab.study.events import Evaluated, Logged, TrialEvent
from lora_lab.study.measures import EVAL_LOSS, MEASURES
from lora_lab.study.results import FINISHED_WITH_VALUE
from lora_lab.terminal.messages import RetrainingsPlanned, StudyBegan, Tick, TrialBegan, TrialOver

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialState
    from lora_lab.study.settings import TrialConfig
    from lora_lab.terminal.messages import Message


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

    @property
    def share(self) -> float:
        """Part of the trial that is done."""
        training = self.config.training
        done = self.step / training.max_steps if training.max_steps else self.epoch / training.num_train_epochs
        return min(1.0, done)


@dataclass(slots=True)
class StudyProgress:
    """How far the study has come: its trials, evaluations and retrainings, which every view shows in part."""

    clock: Callable[[], float] = time.monotonic
    study_name: str = ""
    total: int = 0
    earlier: int = 0
    """Trials finished by an earlier run of the same study."""
    pack_size: int | None = None
    began: float = 0.0
    tokens_per_second: float = 0.0
    tracking: str = ""
    running: dict[int, RunningTrial] = field(default_factory=dict)
    states: Counter[TrialState] = field(default_factory=Counter)
    measure: Measure = EVAL_LOSS
    """What the study judges."""
    best: tuple[float, int, str] | None = None
    """Value, number and configuration."""
    rungs: dict[int, float] = field(default_factory=dict)
    """Best eval_loss by evaluation."""

    def take(self, message: Message) -> None:
        """Take in one message; what is shown only once changes nothing here."""
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
            case TrialOver():
                self._take_ending(message)
            case TrialEvent():
                self._take_event(message)

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

    @property
    def done(self) -> int:
        """The number of trials that need no more work, earlier runs included."""
        return self.earlier + self.states.total()

    @property
    def elapsed_s(self) -> float:
        """Seconds since this run began."""
        return self.clock() - self.began

    @property
    def left_s(self) -> float | None:
        """Estimated seconds to the end, from the trials this run finished; None before the first."""
        if not self.states.total():
            return None
        worked = self.states.total() + sum(trial.share for trial in tuple(self.running.values()))
        return self.elapsed_s * max(0.0, self.total - self.earlier - worked) / worked

    def summary(self) -> str:
        """How the run ended, on one line."""
        counts = ", ".join(f"{count} {STATE_WORDS[state]}" for state, count in self.states.items())
        parts = [f"{self.study_name}: {self.done}/{self.total} trials" + (f" ({counts})" if counts else "")]
        if self.best:
            parts.append(f"best trial {self.best[1]}: {self.measure.label} {measure_text(self.measure, self.best[0])}")
        return "; ".join([*parts, duration_text(self.elapsed_s)])


def retrainings_text(planned: RetrainingsPlanned, progress: StudyProgress) -> str:
    """Which trials are trained again, on one line."""
    numbers = planned.numbers
    chosen = f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(map(str, numbers))}"
    before = "search done; " if progress.done + planned.count >= progress.total else ""
    return f"{before}{plural(planned.count, 'retraining')} of {chosen} with fresh seeds"


def evaluation_text(event: Evaluated) -> str:
    """What an evaluation measured, on one line."""
    scores = (f", {MEASURES[name].label} {measure_text(MEASURES[name], value)}" for name, value in event.scores.items())
    return f"eval_loss {nats(event.eval_loss)}{''.join(scores)}"


def ending_text(over: TrialOver, measure: Measure) -> str:
    """How a trial ended, on one line."""
    value = "" if over.value is None else f", {measure.label} {measure_text(measure, over.value)}"
    return f"trial {over.number} {STATE_WORDS[over.state]}{value}" + (
        f": {one_line(over.reason)}" if over.reason else ""
    )
