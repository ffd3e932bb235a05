"""Running out of memory: recognized, told in one line, and over when the block is."""

from __future__ import annotations

import os
import weakref

import pytest
import torch

from lora_lab.training.device import (
    ALLOCATOR_SETTINGS,
    let_segments_expand,
    memory_may_run_out,
    shortage_of_memory,
    use_granted_cpus,
)

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


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[12:40]}",
)
def test_what_cuda_itself_has_no_room_for_is_out_of_memory_too(error):
    def action():
        raise error

    assert shortage_of_memory(action) == " ".join(str(error).split())


def test_what_reference_cycles_hold_is_given_back_too():
    class Holder:
        def __init__(self) -> None:
            self.itself, self.tensor = self, torch.zeros(1000)

    alive = []

    def action():
        alive.append(weakref.ref(Holder()))
        raise torch.OutOfMemoryError("no room for the next")

    assert shortage_of_memory(action) == "no room for the next"
    assert alive[0]() is None


EXPANDABLE = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}


@pytest.mark.parametrize(
    ("by_the_user", "initialized", "expected"),
    [({}, False, EXPANDABLE), ({}, True, {})]
    + [({name: "max_split_size_mb:64"}, False, {name: "max_split_size_mb:64"}) for name in ALLOCATOR_SETTINGS],
)
def test_segments_expand_where_nobody_said_otherwise(monkeypatch, by_the_user, initialized, expected):
    environment = dict(by_the_user)
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: initialized)
    let_segments_expand()
    assert environment == expected


@pytest.mark.parametrize(
    ("granted", "by_the_user", "expected"), [("1", None, 1), ("1", "2", 2), ("64", None, 2)], ids=str
)
def test_threads_are_no_more_than_the_cpus_that_are_granted(monkeypatch, granted, by_the_user, expected):
    """joblib reads the quota of a container, or this variable in its place; it says no more than there are cores."""
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", granted)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if by_the_user is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", by_the_user)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        use_granted_cpus()
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
