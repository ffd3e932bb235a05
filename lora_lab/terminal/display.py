"""What a person or a program sees while a study runs: a live terminal view, plain lines, or JSON lines.

The runner tells a `Display` what happens. The display keeps the study's progress, once, and has views show it; every
call is O(1), and draws nothing itself except a line of text.
"""

from __future__ import annotations

import threading
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console

from lora_lab.analysis.wording import one_line, plural
from lora_lab.study.events import Evaluated
from lora_lab.terminal.heartbeat import LINE_S, Spacing, StatusFile, heartbeat_line, heartbeat_values
from lora_lab.terminal.live import LONGEST_NOTE, LiveView
from lora_lab.terminal.messages import (
    Heartbeat,
    Note,
    RetrainingsPlanned,
    SessionOver,
    StudyBegan,
    Tick,
    TrialBegan,
    TrialOver,
    Working,
)
from lora_lab.terminal.progress import StudyProgress, ending_text, evaluation_text, retrainings_text
from lora_lab.terminal.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.terminal.messages import Message


class View(Protocol):
    """Shows a study's progress in one way."""

    def show(self, message: Message, progress: StudyProgress) -> None:
        """Show what a message tells; `progress` has taken it in already."""


class Display:
    """Hears everything of one session, keeps the progress, and has it shown.

    Args:
        view: Shows it.
        clock: The time in seconds.
        more: Other views that show it too.
    """

    def __init__(self, view: View, clock: Callable[[], float] = time.monotonic, *more: View) -> None:
        self._views, self._progress = (view, *more), StudyProgress(clock)
        self._over = False
        self._lock = threading.RLock()

    def tell(self, message: Message) -> None:
        """Take in what happened, told by any thread; a second `SessionOver` does nothing."""
        with self._lock:
            if isinstance(message, SessionOver):
                if self._over:
                    return
                self._over = True
            self._progress.take(message)
            for view in self._views:
                view.show(message, self._progress)


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


class PlainView:
    """One line when a trial starts, is evaluated or ends, and every 30 s; when quiet, one at the end of the session."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._writer, self._quiet = LineWriter(stream), quiet
        self._heartbeats = Spacing(LINE_S, first=False)

    def show(self, message: Message, progress: StudyProgress) -> None:
        """Write the message's line, if it has one."""
        if isinstance(message, Heartbeat) and not self._heartbeats.passes(progress.clock()):
            return
        line = plain_line(message, progress)
        if line is not None and (isinstance(message, SessionOver) or not self._quiet):
            self._writer.write(line)


def plain_line(message: Message, progress: StudyProgress) -> str | None:
    """A message as a line for people; None for one that would be noise."""
    line = None
    match message:
        case StudyBegan(study_name, total, pack_size, done):
            earlier = f", {done} done before" if done else ""
            at_a_time = f"{pack_size} at a time" if pack_size else "as many at a time as pay"
            line = f"{study_name}: {plural(total, 'trial')}{earlier}, {at_a_time}"
        case TrialBegan(number, _, label):
            line = f"trial {number} started: {label}"
        case RetrainingsPlanned():
            line = retrainings_text(message, progress)
        case Evaluated():
            line = f"trial {message.number} {_when(message)}: {evaluation_text(message)}"
        case TrialOver():
            line = f"[{progress.done}/{progress.total}] {ending_text(message, progress.measure)}"
        case Heartbeat():
            line = heartbeat_line(progress)
        case Note(text):
            line = one_line(text, LONGEST_NOTE)
        case SessionOver():
            line = progress.summary()
    return line


def _when(event: Evaluated) -> str:
    """How far a trial was: a whole number of epochs, or its step."""
    return f"epoch {event.epoch:.0f}" if event.epoch == round(event.epoch) else f"step {event.step}"


JSON_NAMES: dict[type[Message], str] = {
    StudyBegan: "started",
    TrialBegan: "trial_started",
    RetrainingsPlanned: "retraining",
    TrialOver: "trial_ended",
    Tick: "tick",
    Heartbeat: "heartbeat",
    Note: "note",
    SessionOver: "stopped",
}
"""How messages are called in JSON; an event has the name of its class."""


class JsonView:
    """One JSON object per line for everything that happens; when quiet, for the end of the session alone."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._writer, self._quiet = LineWriter(stream), quiet
        self._heartbeats = Spacing(LINE_S, first=False)

    def show(self, message: Message, progress: StudyProgress) -> None:
        """Write the message with all that it says; heartbeats every 30 s, and of parts of work what they say then."""
        if isinstance(message, Working) or (self._quiet and not isinstance(message, SessionOver)):
            return
        if isinstance(message, Heartbeat) and not self._heartbeats.passes(progress.clock()):
            return
        name = JSON_NAMES.get(type(message), type(message).__name__.lower())
        values = {item.name: getattr(message, item.name) for item in fields(message)}
        if isinstance(message, TrialBegan):
            values["config"] = message.config.model_dump(mode="json")
        elif isinstance(message, StudyBegan):
            values["measure"] = message.measure.name
        elif isinstance(message, TrialOver):
            values[progress.measure.name] = values.pop("value")
        elif isinstance(message, Heartbeat):
            values = heartbeat_values(progress)
        elif isinstance(message, SessionOver):
            values = _end_of(progress)
        self._writer.write(strict_json({"event": name, **values}))


def _end_of(progress: StudyProgress) -> dict[str, Any]:
    return {
        "study_name": progress.study_name,
        "done": progress.done,
        "total_trials": progress.total,
        "states": dict(progress.states),
        "best_single_run": progress.best[1] if progress.best else None,
        f"best_single_run_{progress.measure.name}": progress.best[0] if progress.best else None,
        "elapsed_s": round(progress.elapsed_s, 3),
    }


def choose_display(*, quiet: bool, json: bool, stream: TextIO, status: Path | None = None) -> Display:
    """The display that fits: JSON if asked for, the live view on a capable terminal, otherwise lines.

    Args:
        quiet: Whether only the end is shown.
        json: Whether a program reads.
        stream: Where it is shown.
        status: The status file to be kept beside it.
    """
    more = () if status is None else (StatusFile(status),)
    return Display(_view(stream, quiet=quiet, json=json), time.monotonic, *more)


def _view(stream: TextIO, *, quiet: bool, json: bool) -> View:
    if json:
        return JsonView(stream, quiet=quiet)
    console = Console(file=stream)
    if quiet or not console.is_terminal or console.is_dumb_terminal:
        return PlainView(stream, quiet=quiet)
    return LiveView(console)
