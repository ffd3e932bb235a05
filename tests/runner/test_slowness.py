"""What the machine gave the process while a step was slow, in words."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest

from lora_lab.runner.slowness import Usage, contention_text, is_slowed, likely_reason


def reason(*, seconds: float, waited: float | None = 0.0, faults: int = 0, gpu: bool = False) -> str:
    before = Usage(50.0, None if waited is None else 7.0, 1000)
    after = Usage(50.0 + seconds, None if waited is None else 7.0 + waited, 1000 + faults)
    return likely_reason(before, after, slowed_gpu=lambda: gpu)


@pytest.mark.parametrize(
    ("machine", "said"),
    [
        ({"waited": 12.0}, "other processes have the CPU: it waited for a core 60% of the time"),
        ({"waited": 5.0}, "show no reason"),
        ({"faults": 5000}, "memory is short: 5,000 pages were read back from disk"),
        ({"faults": 5000, "waited": 12.0}, "memory is short"),
        ({"faults": 900}, "show no reason"),
        ({"gpu": True}, "the GPU is throttled"),
        ({"waited": None, "gpu": True}, "the GPU is throttled"),
        ({"waited": None}, "a disk or file server may be slow"),
    ],
    ids=str,
)
def test_the_likely_reason(machine, said):
    assert said in reason(seconds=20.0, **machine)


@pytest.mark.parametrize(
    ("waited", "threads", "told"),
    [
        (12.0, None, True),
        (12.0, "2", True),
        (40.0, None, True),
        (12.0, "1", False),
        (2.0, None, False),
        (None, None, False),
    ],
    ids=str,
)
def test_contention_is_told_where_fewer_threads_would_help(waited, threads, told):
    before, after = (
        Usage(0.0, None if waited is None else 1.0, 0),
        Usage(30.0, None if waited is None else 1 + waited, 0),
    )
    text = contention_text(before, after, threads)
    assert (text is not None) == told
    if text is not None:
        assert f"{min(100, round(100 * waited / 30))}% of the time" in text
        assert "OMP_NUM_THREADS=1" in text


@pytest.mark.parametrize(
    ("masks", "slowed"),
    [
        (["0x0000000000000000"], False),
        (["0x0000000000000001"], False),  # idle
        (["0x0000000000000004"], False),  # at the power limit, as every busy GPU
        (["0x0000000000000000", "0x0000000000000040"], True),  # the second one is hot
        (["0x0000000000000024"], True),
        (["[N/A]"], False),
        ([], False),
    ],
)
def test_a_gpu_says_why_its_clock_is_low(masks, slowed):
    assert is_slowed(masks) is slowed


def test_usage_grows_with_what_the_system_counts():
    before = Usage.now()
    deadline = time.monotonic() + 0.02
    while time.monotonic() < deadline:
        pass
    after = Usage.now()
    assert after.at_s > before.at_s
    assert after.major_faults >= before.major_faults
    assert (after.waited_s is None) == (before.waited_s is None)
    assert after.waited_s is None or after.waited_s >= before.waited_s


def test_what_other_threads_wait_counts():
    """Three threads that compute outside Python's lock on one core: they wait for it."""
    before, block, data = Usage.now(), threading.Event(), bytes(2**25)

    def compute() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        while not block.is_set():
            hashlib.sha256(data).digest()

    if before.waited_s is None:
        pytest.skip("this system does not count it")
    threads = [threading.Thread(target=compute) for _ in range(3)]
    for thread in threads:
        thread.start()
    while Usage.now().waited_s < before.waited_s + 0.1:
        time.sleep(0.01)
    block.set()
    for thread in threads:
        thread.join()
