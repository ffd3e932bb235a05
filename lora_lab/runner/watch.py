"""The watch over one session: hears each part of long work, says every second that the process lives, and ends it.

It looks from a thread of its own, since a step, or a library that loads a base, may keep the main thread for minutes.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Self

from lora_lab.analysis.wording import duration_text
from lora_lab.common.activity import TRAINING, Activity, Interrupted
from lora_lab.runner.slowness import (
    CONTENTION_S,
    KNOWN,
    LEAST_S,
    TIMES,
    Usage,
    contention_text,
    gpu_is_slowed,
    likely_reason,
    slow_text,
)
from lora_lab.terminal.messages import Heartbeat, Note, SessionOver, Working

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from lora_lab.runner.stopping import StopRequest
    from lora_lab.terminal.display import Display

LOOK_S = 1.0
"""Seconds between two looks."""
TELL_S = 0.25
"""Parts of one kind of work are shown at most so often."""
REMEMBERED = 99
"""Newest durations of parts, of which the median is taken."""
GRACE_S = 25.0
"""A preemptible machine is gone 30 s after its SIGTERM."""
IDLE_GRACE_S = 10.0
"""After a signal where nothing is to be saved; a library that does not return to Python is left then."""
SECOND_GRACE_S = 3.0
"""After the second signal, for what Python can still do in order."""


class Watch:
    """Watches a session from its beginning to its end (a context manager).

    Args:
        display: What the user sees.
        stop: Whether Ctrl-C or SIGTERM came.
        clock: The time in seconds.
        usage: What the machine gave this process until now.
        leave: Ends the process at once, with an exit code.
    """

    def __init__(
        self,
        display: Display,
        stop: StopRequest,
        *,
        clock: Callable[[], float] = time.monotonic,
        usage: Callable[[], Usage] = Usage.now,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self._display, self._stop, self._clock, self._usage, self._leave = display, stop, clock, usage, leave
        self._is_over: Callable[[], bool] = bool
        self._current: tuple[Activity, float] | None = None
        """What is being done, and since when."""
        self._told = -TELL_S
        self._durations: dict[str, deque[float]] = {}
        """Seconds that parts took, by what they are parts of: training, and the newest other work."""
        self._seen: tuple[float, Usage] | None = None
        """When the current part began that was seen at the last look, and what the machine had given by then."""
        self._slow: float | None = None
        """When the part began that was told to be slow."""
        self._training: Usage | None = None
        """At the beginning of the time over which training is watched for contention."""
        self._contended = False
        """Whether that was told, which is done once."""
        self._asked: float | None = None
        self._asked_again: float | None = None
        self._idle: float | None = None
        """When the process was asked to end, was asked again, and was first seen to have nothing to save."""
        self._closed = False
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self._stop.wake()
        self._thread.join(LOOK_S)
        self._display.tell(Heartbeat("ended"))

    @contextmanager
    def until(self, is_over: Callable[[], bool]) -> Iterator[None]:
        """Within the block, long work is also left where `is_over` says so."""
        self._is_over = is_over
        try:
            yield
        finally:
            self._is_over = bool

    def beat(self, activity: Activity) -> None:
        """Hear what is done next (a `Beat`); called by the main thread only.

        Raises:
            Interrupted: it is not to be done, for the process is to end.
        """
        now = self._clock()
        before, self._current = self._current, (activity, now)
        is_new = before is None or before[0].what != activity.what
        if before is not None:
            self._durations.setdefault(before[0].what, deque(maxlen=REMEMBERED)).append(now - before[1])
            if is_new and before[0] != TRAINING:
                del self._durations[before[0].what]
        if is_new or now - self._told >= TELL_S:
            self._told = now
            self._display.tell(Working(activity))
        if self._stop.requested or self._is_over():
            raise Interrupted

    # In the thread

    def _look_on(self) -> None:
        while not self._closed:
            self.look()
            self._stop.wait(LOOK_S)

    def look(self) -> None:
        """Say that the process lives, name what is slow, and end the process where it was asked to and does not."""
        self._look_for_signals()
        self._display.tell(Heartbeat("running" if self._asked is None else "stopping"))
        self._look_for_slowness()
        self._look_for_contention()

    def _look_for_contention(self) -> None:
        if self._contended or self._current is None or self._current[0] != TRAINING:
            self._training = None
            return
        now = self._usage()
        if self._training is None:
            self._training = now
        if now.at_s - self._training.at_s < CONTENTION_S:
            return
        told = contention_text(self._training, now, os.environ.get("OMP_NUM_THREADS"))
        self._contended, self._training = told is not None, now
        if told is not None:
            self._display.tell(Note(told))

    def _look_for_slowness(self) -> None:
        if self._current is None:
            return
        (activity, began), now = self._current, self._clock()
        if self._seen is None or self._seen[0] != began:
            self._seen = (began, self._usage())
        known = tuple(self._durations.get(activity.what, ()))
        if self._slow == began or len(known) < KNOWN:
            return
        usual_s, seconds = median(known), now - began
        if seconds >= max(TIMES * usual_s, LEAST_S):
            self._slow = began
            reason = likely_reason(self._seen[1], self._usage(), slowed_gpu=gpu_is_slowed)
            self._display.tell(Note(slow_text(activity.what, seconds, usual_s, reason)))

    def _look_for_signals(self) -> None:
        signals, now = self._stop.arrived, self._clock()
        if not signals:
            return
        if self._asked is None:
            self._asked = now
            if self._stop.is_deferred:
                self._display.tell(Note(self._stopping_text(signals[0])))
        if len(signals) > 1 and self._asked_again is None:
            self._asked_again = now
        if self._stop.is_deferred:
            self._idle = None
        elif self._idle is None:
            self._idle = now
        deadlines = [
            since + grace_s
            for since, grace_s in (
                (self._asked if signals[0] == signal.SIGTERM else None, GRACE_S),
                (self._asked_again, SECOND_GRACE_S),
                (self._idle, IDLE_GRACE_S),
            )
            if since is not None
        ]
        if any(now >= deadline for deadline in deadlines):
            self._leave_now()

    def _stopping_text(self, first: signal.Signals) -> str:
        name = "Ctrl-C" if first == signal.SIGINT else first.name
        activity = None if self._current is None else self._current[0]
        work = "the step under way" if activity in {None, TRAINING} else f"what is under way ({activity.what})"
        known = () if activity is None else tuple(self._durations.get(activity.what, ()))
        usually = f" (usually {duration_text(median(known))})" if known else ""
        grace = f"; after {GRACE_S:.0f} s it leaves anyway" if first == signal.SIGTERM else ""
        return (
            f"{name}: leaving when {work} is over{usually} and checkpoints are written{grace}; "
            "Ctrl-C once more leaves at once, with the checkpoints that there are"
        )

    def _leave_now(self) -> None:
        """End the process as `kill -9` would, which loses nothing that was written."""
        last = threading.Thread(target=self._display.tell, args=(SessionOver(),), daemon=True)
        last.start()
        last.join(LOOK_S)  # not longer: a stream that nobody reads any more would hold it up
        os.write(2, b"left at once: the checkpoints that there are are whole; the same command goes on from them\n")
        self._leave(self._stop.exit_code)
