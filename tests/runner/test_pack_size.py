"""The pack grows while it pays, and shrinks when memory says so."""

from __future__ import annotations

import pytest

from lora_lab.runner.pack_size import STEPS_PER_SIZE, PackSize


def run(size: PackSize, speeds: dict[int, float]) -> list[int]:
    """The limits that a pack went through on a device with these speeds by pack size."""
    limits = [size.limit]
    for _ in range(20 * STEPS_PER_SIZE):
        size.measured(size.limit, speeds[size.limit])
        if limits[-1] != size.limit:
            limits.append(size.limit)
    return limits


def test_it_doubles_while_the_device_gets_faster_and_keeps_the_last_size_that_paid() -> None:
    assert run(PackSize(None), {1: 100, 2: 190, 4: 300, 8: 310, 16: 900}) == [1, 2, 4, 8, 4]


def test_a_device_that_is_busy_with_one_trial_keeps_one() -> None:
    assert run(PackSize(None), {1: 100, 2: 104}) == [1, 2, 1]


def test_it_ends_at_the_largest_size() -> None:
    limits = run(PackSize(None), {2**power: 2.0**power for power in range(10)})
    assert limits == [1, 2, 4, 8, 16, 32, 64]


@pytest.mark.parametrize("fixed", [1, 3, 16])
def test_a_fixed_size_stays(fixed: int) -> None:
    assert run(PackSize(fixed), dict.fromkeys(range(1, 65), 1.0)) == [fixed]


def test_a_pack_that_is_not_full_tells_nothing() -> None:
    size = PackSize(None)
    for _ in range(STEPS_PER_SIZE):
        size.measured(1, 100.0)
    assert size.limit == 2
    for _ in range(5 * STEPS_PER_SIZE):
        size.measured(1, 1.0)
    assert size.limit == 2


def test_memory_has_the_last_word() -> None:
    size = PackSize(8)
    size.shrink(5)
    assert size.limit == 5
    size.shrink(7)
    assert size.limit == 5
    size.shrink(0)
    assert size.limit == 1
