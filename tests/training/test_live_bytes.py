"""What is counted of a step leaves nothing behind, and is what a CUDA allocator's own books are read by."""

from __future__ import annotations

import gc
import weakref

import torch

from lora_lab.training.live_bytes import ALLOCATION_BYTES, LiveBytes
from lora_lab.training.memory.probe import handed_out


def test_a_base_that_goes_on_living_does_not_keep_its_counts():
    """A sweep measures many shapes on one base."""
    base = [torch.zeros(100) for _ in range(3)]
    live = LiveBytes(base)
    with live:
        base[0] + 1
    assert live.peak == 4 * ALLOCATION_BYTES
    gone = weakref.ref(live)
    del live
    gc.collect()
    assert gone() is None


def test_what_was_handed_out_is_the_base_and_the_trial_alone():
    """Beside neighbors and workspaces that were there before; blocks are larger than what is asked for."""
    kept = torch.zeros(100)
    live = LiveBytes([kept])
    with live:
        kept * 2
    others = 10_000
    before = {"allocated_bytes.all.current": others + 512, "requested_bytes.all.current": others + 400}
    after = {"allocated_bytes.all.peak": others + 1024, "requested_bytes.all.peak": others + 800}
    assert handed_out(before, after, live) == {"allocated": 1024, "requested": 800}
