"""That a study runs and where it is: one line for people, one object for programs, and a file for watchers."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from lora_lab.analysis.wording import duration_text, nats, one_line
from lora_lab.common.activity import TRAINING
from lora_lab.common.errors import StorageError
from lora_lab.common.files import write_durably
from lora_lab.terminal.messages import Heartbeat
from lora_lab.terminal.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.terminal.messages import Message
    from lora_lab.terminal.progress import RunningTrial, StudyProgress

LINE_S = 30.0
"""At least this often a line or a JSON object says what runs."""
STATUS_S = 2.0
"""At most this often the status file is written."""
MOST_TRIALS = 4
"""Trials that a line names; the status file has all."""


class Spacing:
    """Lets one in so many seconds pass.

    Args:
        seconds: How many.
        first: Whether the first one passes, or only begins the time of the second.
    """

    def __init__(self, seconds: float, *, first: bool) -> None:
        self._seconds, self._first = seconds, first
        self._last: float | None = None

    def passes(self, now: float) -> bool:
        """Whether what comes now passes."""
        if self._last is None:
            self._last = now
            return self._first
        if now - self._last < self._seconds:
            return False
        self._last = now
        return True


def activity_text(progress: StudyProgress) -> str | None:
    """What is being done beside training steps, and how far it is; None while trials train, or nothing is told."""
    activity = progress.activity
    if activity is None or activity == TRAINING:
        return None
    text = one_line(activity.what, 120)
    if activity.total is not None:
        text += f": {activity.done}/{activity.total} {activity.parts}"
    left = progress.left_of_activity
    return text if left is None else f"{text}, about {duration_text(left)} left"


def heartbeat_line(progress: StudyProgress) -> str:
    """What runs, how far it is, how fast, and the time that is left, on one line."""
    doing = activity_text(progress)
    parts = [doing or _trials_text(progress)]
    if doing is None and progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.total:
        left = progress.left_s
        done = f"{progress.done}/{progress.total} trials done"
        parts.append(done if left is None else f"{done}, about {duration_text(left)} left")
    stopping = "stopping, " if progress.state == "stopping" else ""
    return f"after {duration_text(progress.elapsed_s)}: {stopping}{'; '.join(parts)}"


def _trials_text(progress: StudyProgress) -> str:
    trials = tuple(progress.running.values())
    if not trials:
        return "between trials"
    named = [_trial_text(trial, progress.left_of_trial(trial)) for trial in trials[:MOST_TRIALS]]
    more = len(trials) - MOST_TRIALS
    return ", ".join([*named, *([f"{more} more"] if more > 0 else [])])


def _trial_text(trial: RunningTrial, left: float | None) -> str:
    text = f"trial {trial.number} step {trial.step}"
    if trial.total_steps is not None:
        text += f"/{trial.total_steps}"
    if trial.loss is not None:
        text += f" loss {nats(trial.loss)}"
    return text if left is None else f"{text} ({duration_text(left)} left)"


def heartbeat_values(progress: StudyProgress) -> dict[str, Any]:
    """What runs, as names and values for programs; times in seconds, None for what is not known."""
    activity = progress.activity
    return {
        "state": progress.state,
        "study_name": progress.study_name,
        "doing": None if activity is None else activity.what,
        "parts": None if activity is None else activity.parts,
        "parts_done": None if activity is None else activity.done,
        "parts_total": None if activity is None else activity.total,
        "parts_left_s": progress.left_of_activity,
        "trials": [
            {
                "number": trial.number,
                "step": trial.step,
                "total_steps": trial.total_steps,
                "loss": trial.loss,
                "eval_loss": trial.eval_loss,
                "left_s": progress.left_of_trial(trial),
            }
            for trial in tuple(progress.running.values())
        ],
        "tokens_per_second": progress.tokens_per_second,
        "done": progress.done,
        "total_trials": progress.total,
        "left_s": progress.left_s,
        "elapsed_s": progress.elapsed_s,
        "since_last_step_s": progress.clock() - progress.moved,
    }


class StatusFile:
    """A view that keeps a file with what runs: `written_at` shows that the process lives, `last_step_at` that it moves.

    Args:
        path: The file; it is replaced as a whole.
        wall_clock: The time of day.
    """

    def __init__(self, path: Path, wall_clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._path, self._wall_clock = path, wall_clock
        self._spacing = Spacing(STATUS_S, first=True)

    def show(self, message: Message, progress: StudyProgress) -> None:
        """Write the file at the first heartbeat, at the last, and every few seconds between them."""
        if isinstance(message, Heartbeat) and (self._spacing.passes(progress.clock()) or message.state == "ended"):
            self._write(progress)

    def _write(self, progress: StudyProgress) -> None:
        written = self._wall_clock()
        last_step = written - timedelta(seconds=progress.clock() - progress.moved)
        values = heartbeat_values(progress) | {
            "written_at": written.isoformat(timespec="milliseconds"),
            "last_step_at": last_step.isoformat(timespec="milliseconds"),
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        with suppress(StorageError):  # a disk that is full is told by what must be written there
            write_durably(self._path, strict_json(values, indent=2) + "\n")
