"""What a person or a program sees while a study runs: a live terminal view, plain lines, or JSON lines.

The runner tells a `Display` what happens; every call is O(1) and draws nothing itself except a line of text.
"""

from __future__ import annotations

import json as json_format
import math
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console

from lora_lab.analysis.wording import config_label, nats, one_line, plural
from lora_lab.study.events import Evaluated
from lora_lab.terminal.live import LiveDisplay
from lora_lab.terminal.progress import Progress, Slot, ending_text, retraining_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.events import TrialEvent
    from lora_lab.study.results import TrialState
    from lora_lab.study.settings import TrialConfig


class Display(Protocol):
    """What the runner tells, in this order: start, anything any number of times, stop."""

    def start(self, study_name: str, total_trials: int, pack_size: int | None, *, done: int = 0) -> None:
        """The study begins; `done` of its trials were finished before, `pack_size` is None for `auto`."""

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """A trial was given a slot."""

    def retraining(self, numbers: Sequence[int], count: int) -> None:
        """The search is over; `count` more trials train the chosen ones again with fresh seeds."""

    def event(self, event: TrialEvent) -> None:
        """Something happened to a trial."""

    def trial_ended(self, number: int, state: TrialState, eval_loss: float | None = None, reason: str = "") -> None:
        """A trial left its slot, or (`shared`) never needed one."""

    def tick(self, tokens_per_second: float, tracking: str = "") -> None:
        """Current speed of all slots together, and the state of the tracker in words."""

    def note(self, text: str) -> None:
        """Something that the user should read."""

    def stop(self) -> None:
        """The study ended or was interrupted; calling it again does nothing."""


class LineWriter:
    """Writes whole lines to a stream that may lack characters, and outlives a reader that went away."""

    def __init__(self, stream: TextIO) -> None:
        self._stream: TextIO | None = stream

    def write(self, line: str) -> None:
        """Write one line; what the stream's encoding lacks becomes `?`."""
        if self._stream is None:
            return
        encoding = self._stream.encoding or "utf-8"
        try:
            self._stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            # `sweep | head`: nobody reads any more, and training must go on.
            self._stream = None


class PlainDisplay:
    """One line when a trial starts, is evaluated or ends; when quiet, one line at the end of the study."""

    def __init__(self, stream: TextIO, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = Progress(clock)
        self._writer = LineWriter(stream)
        self._quiet = quiet
        self._stopped = False

    def start(self, study_name: str, total_trials: int, pack_size: int | None, *, done: int = 0) -> None:
        """Say what begins."""
        self._progress.start(study_name, total_trials, pack_size, done)
        earlier = f", {done} done before" if done else ""
        at_a_time = f"{pack_size} at a time" if pack_size else "as many at a time as pay"
        self._say(f"{study_name}: {plural(total_trials, 'trial')}{earlier}, {at_a_time}")

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Say which configuration trains."""
        self._progress.slots[number] = Slot(number, config)
        self._say(f"trial {number} started: {config_label(config)}")

    def retraining(self, numbers: Sequence[int], count: int) -> None:
        """Say which trials are retrained."""
        self._progress.retraining(count)
        self._say(retraining_text(numbers, count))

    def event(self, event: TrialEvent) -> None:
        """Take an event in."""
        self._progress.update(event)
        if isinstance(event, Evaluated):
            self._say(f"trial {event.number} epoch {event.epoch:.3g}: eval_loss {nats(event.eval_loss)}")

    def trial_ended(self, number: int, state: TrialState, eval_loss: float | None = None, reason: str = "") -> None:
        """Say how the trial ended."""
        self._progress.ended(number, state, eval_loss, reason)
        place = f"[{self._progress.done}/{self._progress.total}]"
        self._say(f"{place} {ending_text(number, state, eval_loss, reason)}")

    def tick(self, tokens_per_second: float, tracking: str = "") -> None:
        """Keep the speed and the state of the tracker."""
        self._progress.tokens_per_second, self._progress.tracking = tokens_per_second, tracking

    def note(self, text: str) -> None:
        """Say it."""
        self._say(one_line(text, 2000))

    def stop(self) -> None:
        """Say how the study ended."""
        if not self._stopped:
            self._stopped = True
            self._writer.write(self._progress.summary())

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._writer.write(line)


class JsonDisplay:
    """One JSON object per line for everything that happens; when quiet, for the end of the study alone."""

    def __init__(self, stream: TextIO, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = Progress(clock)
        self._writer = LineWriter(stream)
        self._quiet = quiet
        self._stopped = False

    def start(self, study_name: str, total_trials: int, pack_size: int | None, *, done: int = 0) -> None:
        """Say what begins."""
        self._progress.start(study_name, total_trials, pack_size, done)
        self._say("started", study_name=study_name, total_trials=total_trials, pack_size=pack_size, done=done)

    def trial_started(self, number: int, config: TrialConfig) -> None:
        """Say which configuration trains."""
        self._progress.slots[number] = Slot(number, config)
        self._say("trial_started", number=number, config=config.model_dump(mode="json"))

    def retraining(self, numbers: Sequence[int], count: int) -> None:
        """Say which trials are retrained."""
        self._progress.retraining(count)
        self._say("retraining", numbers=list(numbers), count=count)

    def event(self, event: TrialEvent) -> None:
        """Take an event in."""
        self._progress.update(event)
        values = {item.name: getattr(event, item.name) for item in fields(event)}
        self._say(type(event).__name__.lower(), **values)

    def trial_ended(self, number: int, state: TrialState, eval_loss: float | None = None, reason: str = "") -> None:
        """Say how the trial ended."""
        self._progress.ended(number, state, eval_loss, reason)
        self._say("trial_ended", number=number, state=state, eval_loss=eval_loss, reason=reason)

    def tick(self, tokens_per_second: float, tracking: str = "") -> None:
        """Keep the speed and the state of the tracker."""
        self._progress.tokens_per_second, self._progress.tracking = tokens_per_second, tracking
        self._say("tick", tokens_per_second=tokens_per_second, tracking=tracking)

    def note(self, text: str) -> None:
        """Say it."""
        self._say("note", text=text)

    def stop(self) -> None:
        """Say how the study ended."""
        if self._stopped:
            return
        self._stopped = True
        progress, best = self._progress, self._progress.best
        self._write(
            "stopped",
            study_name=progress.study_name,
            done=progress.done,
            total_trials=progress.total,
            states=dict(progress.states),
            best_trial=best[1] if best else None,
            best_eval_loss=best[0] if best else None,
            elapsed_s=round(progress.elapsed_s, 3),
        )

    def _say(self, what: str, **values: Any) -> None:
        if not self._quiet:
            self._write(what, **values)

    def _write(self, what: str, **values: Any) -> None:
        self._writer.write(json_format.dumps({"event": what, **_plain(values)}, allow_nan=False))


def _plain(value: Any) -> Any:
    """A value as strict JSON has it: no NaN, no paths, no tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, type(None))) else str(value)


def choose_display(*, quiet: bool, json: bool, stream: TextIO) -> Display:
    """The display that fits: JSON if asked for, the live view on a capable terminal, otherwise lines."""
    if json:
        return JsonDisplay(stream, quiet=quiet)
    console = Console(file=stream)
    if quiet or not console.is_terminal or console.is_dumb_terminal:
        return PlainDisplay(stream, quiet=quiet)
    return LiveDisplay(console)
