"""Where a running study stands: slots, counts, the best so far, and the time that is left."""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_lab.analysis.verdict_words import STATE_WORDS
from lora_lab.analysis.wording import config_label, duration_text, nats, one_line, plural
from lora_lab.study.events import Evaluated, Logged
from lora_lab.study.results import FINISHED_WITH_VALUE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.events import TrialEvent
    from lora_lab.study.results import TrialState
    from lora_lab.study.settings import TrialConfig


@dataclass(slots=True)
class Slot:
    """A running trial."""

    number: int
    config: TrialConfig
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
class Progress:
    """Where the study stands; what all displays show parts of."""

    clock: Callable[[], float] = time.monotonic
    study_name: str = ""
    total: int = 0
    earlier: int = 0
    """Trials finished by an earlier run of the same study."""
    pack_size: int | None = None
    began: float = 0.0
    tokens_per_second: float = 0.0
    tracking: str = ""
    slots: dict[int, Slot] = field(default_factory=dict)
    states: Counter[TrialState] = field(default_factory=Counter)
    best: tuple[float, int, str] | None = None
    """eval_loss, number and configuration."""
    rungs: dict[int, float] = field(default_factory=dict)
    """Best eval_loss by evaluation."""
    searching: bool = True
    """False while the best trials are trained again."""

    def start(self, study_name: str, total_trials: int, pack_size: int | None, done: int) -> None:
        """Begin to count."""
        self.study_name, self.total, self.pack_size, self.earlier = study_name, total_trials, pack_size, done
        self.began = self.clock()

    def retraining(self, count: int) -> None:
        """Count on with trials that train the best again, of which none is the best of the search."""
        self.total += count
        self.searching = False

    def update(self, event: TrialEvent) -> None:
        """Take in one event of a running trial."""
        slot = self.slots.get(event.number)
        if slot is None:
            return
        slot.step, slot.epoch = event.step, event.epoch
        if isinstance(event, Logged):
            slot.loss = event.loss
        elif isinstance(event, Evaluated):
            slot.eval_loss, slot.evaluation = event.eval_loss, event.evaluation
            self.rungs[event.evaluation] = min(event.eval_loss, self.rungs.get(event.evaluation, math.inf))

    def ended(self, number: int, state: TrialState, eval_loss: float | None, reason: str = "") -> None:
        """Free the trial's slot and count it; of one that had no slot, the reason says what it is."""
        slot = self.slots.pop(number, None)
        self.states[state] += 1
        has_value = state in FINISHED_WITH_VALUE and eval_loss is not None and math.isfinite(eval_loss)
        if eval_loss is None or not has_value or not self.searching:
            return
        if self.best is None or eval_loss < self.best[0]:
            self.best = (eval_loss, number, config_label(slot.config) if slot else reason)

    def behind(self, slot: Slot) -> float | None:
        """Nats by which a slot's last evaluation is above the best one that any trial had at that rung."""
        return None if slot.eval_loss is None else slot.eval_loss - self.rungs[slot.evaluation]

    @property
    def done(self) -> int:
        """Trials that need no more work, those of earlier runs included."""
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
        worked = self.states.total() + sum(slot.share for slot in tuple(self.slots.values()))
        return self.elapsed_s * max(0.0, self.total - self.earlier - worked) / worked

    def summary(self) -> str:
        """How the run ended, on one line."""
        counts = ", ".join(f"{count} {STATE_WORDS[state]}" for state, count in self.states.items())
        parts = [f"{self.study_name}: {self.done}/{self.total} trials" + (f" ({counts})" if counts else "")]
        if self.best:
            parts.append(f"best trial {self.best[1]}: eval_loss {nats(self.best[0])}")
        return "; ".join([*parts, duration_text(self.elapsed_s)])


def retraining_text(numbers: Sequence[int], count: int) -> str:
    """What happens after the search, on one line."""
    chosen = f"{'trial' if len(numbers) == 1 else 'trials'} {', '.join(map(str, numbers))}"
    return f"search done; {plural(count, 'retraining')} of {chosen} with fresh seeds"


def ending_text(number: int, state: TrialState, eval_loss: float | None, reason: str) -> str:
    """How a trial ended, on one line."""
    loss = "" if eval_loss is None else f", eval_loss {nats(eval_loss)}"
    return f"trial {number} {STATE_WORDS[state]}{loss}" + (f": {one_line(reason)}" if reason else "")
