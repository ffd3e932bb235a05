"""How many trials train at once: a fixed number, or as many as make the device faster."""

from __future__ import annotations

import statistics

STEPS_PER_SIZE = 12
"""Steps measured at one size before it is judged; the first of them are warm-up."""
WARM_UP_STEPS = 2
GAIN = 1.05
"""A larger pack must train this many times the tokens per second of the smaller one; less only delays results."""
LARGEST = 64


class PackSize:
    """The limit on the number of trials in a pack.

    With `fixed` it is that number, so that the order of events is reproducible. Without, it begins at 1 and is
    doubled while the measured speed grows by 5% or more; then the last size that paid stays.
    """

    def __init__(self, fixed: int | None) -> None:
        self.limit = fixed or 1
        self._settled = fixed is not None
        self._speeds: list[float] = []
        self._speed_before = 0.0

    @property
    def settled(self) -> bool:
        """Whether the limit stays as it is, but for memory that runs out."""
        return self._settled

    def measured(self, active: int, tokens_per_second: float) -> None:
        """One training step of `active` trials ran at this speed."""
        if self._settled or active != self.limit:
            return
        self._speeds.append(tokens_per_second)
        if len(self._speeds) == STEPS_PER_SIZE:
            self._judge(statistics.median(self._speeds[WARM_UP_STEPS:]))
            self._speeds.clear()

    def _judge(self, speed: float) -> None:
        if speed < GAIN * self._speed_before:
            self.limit = max(1, self.limit // 2)
            self._settled = True
        elif self.limit >= LARGEST:
            self._settled = True
        else:
            self._speed_before = speed
            self.limit *= 2

    def shrink(self, fitting: int) -> None:
        """Only so many fitted into the device's memory."""
        self.limit = min(self.limit, max(1, fitting))
        self._settled = True
