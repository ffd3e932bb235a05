"""When checkpoints are due, on a clock that goes on when told."""

from __future__ import annotations

import pytest

from lora_lab.runner.checkpoint_clock import CheckpointClock


class Device:
    """Writes checkpoints that take `takes_s`, and remembers when."""

    def __init__(self, interval_s: float, takes_s: float) -> None:
        self.now_s, self.takes_s, self.saved_at_s = 0.0, takes_s, []
        self.clock = CheckpointClock(interval_s, lambda: self.now_s)

    def save(self) -> None:
        self.saved_at_s.append(self.now_s)
        self.now_s += self.takes_s

    def train(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            self.clock.run(self.save)


def test_checkpoints_come_after_each_interval():
    device = Device(interval_s=30.0, takes_s=0.0)
    device.train(100)
    assert device.saved_at_s == [30.0, 60.0, 90.0]


def test_without_an_interval_they_come_every_time():
    device = Device(interval_s=0.0, takes_s=0.0)
    device.train(3)
    assert device.saved_at_s == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("interval_s", [0.0, 30.0])
def test_slow_ones_take_at_most_two_percent_of_the_time(interval_s):
    device = Device(interval_s, takes_s=4.0)
    device.train(1000)
    assert len(device.saved_at_s) > 3
    assert 4.0 * (len(device.saved_at_s) - 1) <= 0.02 * device.now_s
