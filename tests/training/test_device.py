"""Running out of memory: recognized, told in one line, and over when the block is."""

from __future__ import annotations

import weakref

import pytest
import torch

from lora_lab.training.device import memory_may_run_out

SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB."),
    MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail] DefaultCPUAllocator:\n can't allocate memory: you tried to allocate 8 bytes."),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=lambda error: type(error).__name__)
def test_it_is_told_in_one_line_and_the_program_goes_on(error):
    with memory_may_run_out() as shortage:
        assert shortage.reason is None
        raise error
    assert shortage.reason == " ".join(str(error).split())


def test_without_one_there_is_no_reason():
    with memory_may_run_out() as shortage:
        pass
    assert shortage.reason is None


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError("no")])
def test_other_errors_leave_the_block(error):
    with pytest.raises(type(error), match=str(error)), memory_may_run_out():
        raise error


def test_behind_the_block_nothing_of_the_failed_attempt_is_held():
    """An error holds the frames that it came through, and these all activations, as long as it is handled."""
    alive = []

    def attempt():
        activations = torch.zeros(1000)
        alive.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("no room for the next")

    with memory_may_run_out() as shortage:
        attempt()
    assert shortage.reason is not None
    assert alive[0]() is None
