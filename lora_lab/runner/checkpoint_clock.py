"""When checkpoints are due: often enough to lose little to a kill, and seldom enough to cost little."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_SHARE = 50
"""The next checkpoint comes at least this many times the newest one's duration later: at most 2% of the time."""


class CheckpointClock:
    """Says when checkpoints are due.

    Args:
        interval_s: About this much work of a trial is repeated after a kill, at most; more where writing is slow.
        clock: The time in seconds.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval_s, self._clock = interval_s, clock
        self._due_s = clock() + interval_s

    def run(self, save: Callable[[], None]) -> None:
        """Call `save` where checkpoints are due."""
        started = self._clock()
        if started < self._due_s:
            return
        save()
        now = self._clock()
        self._due_s = now + max(self._interval_s, LONGEST_SHARE * (now - started))
