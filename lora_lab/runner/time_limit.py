"""An end in time: how long one call of `sweep` may take, and whether another trial may still begin."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.study.sweep import SweepSettings

HOUR_S = 3600.0


def search_share(sweep: SweepSettings, trials: int) -> float:
    """The share of the time that the search may use, so that the retrainings of its finalists find theirs (0 to 1)."""
    retrainings = sweep.confirm.top * sweep.confirm.seeds if sweep.confirm is not None else 0
    return trials / (trials + retrainings) if trials else 1.0


class TimeLimit:
    """Knows when a call must end, and how long its trials take.

    Args:
        hours: From now until trials in training are saved and left; None for no limit.
        clock: The time in seconds.
    """

    def __init__(self, hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began_s = clock, clock()
        self._seconds = math.inf if hours is None else hours * HOUR_S
        self._share = 1.0
        self._since: dict[int, float] = {}
        self._longest_s = 0.0

    def keep_for_retrainings(self, share_of_search: float) -> None:
        """Let new trials begin in this share of the time only, until `search_is_over`."""
        self._share = share_of_search

    def search_is_over(self) -> None:
        """Let trials begin in all of the time that is left."""
        self._share = 1.0

    def trial_began(self, number: int) -> None:
        """Note that a trial trains from now on."""
        self._since[number] = self._clock()

    def trial_ended(self, number: int, *, trained_whole: bool) -> None:
        """Note that a trial trains no longer; one that was pruned or failed says nothing of how long a training is."""
        since = self._since.pop(number, None)
        if trained_whole and since is not None:
            self._longest_s = max(self._longest_s, self._clock() - since)

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return self._clock() - self._began_s >= self._seconds

    @property
    def admits_another(self) -> bool:
        """Whether a trial that begins now would end in time, if it takes as long as the longest one so far."""
        return self._clock() - self._began_s + self._longest_s <= self._share * self._seconds
