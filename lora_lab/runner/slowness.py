"""Why a step may take long: what the machine gave this process meanwhile, as the operating system counts it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import duration_text, number_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TIMES = 20
"""A step is slow that takes so many times its median..."""
LEAST_S = 10.0
"""...and so many seconds."""
KNOWN = 5
"""Steps of which a median is taken, at least."""
SHARE_WAITED = 0.3
"""Of the time, spent waiting for a core: other processes had it."""
CONTENTION_S = 30.0
"""So long training is watched before it is said that other processes slow it down."""
FAULTS_PER_S = 50.0
"""Pages read back from disk: memory is short."""
SLOWED = 0x8 | 0x20 | 0x40 | 0x80
"""NVIDIA's reasons for a lower clock that are no choice: hardware slowdown, heat (software, hardware), power brake."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What this process was given until now."""

    at_s: float
    waited_s: float | None
    """Time in which its threads could run and had no core, added up; None where the system does not count it."""
    major_faults: int
    """Pages that had to be read from disk."""

    @classmethod
    def now(cls) -> Usage:
        """As it is now; all zero but the time where the system counts nothing."""
        return cls(time.monotonic(), _waited_s(), _major_faults())


def _waited_s() -> float | None:
    waited = [_waited_ns(thread) for thread in Path("/proc/self/task").glob("*/schedstat")]
    known = [ns for ns in waited if ns is not None]
    return sum(known) / 1e9 if known else None


def _waited_ns(thread: Path) -> int | None:
    try:
        return int(thread.read_text().split()[1])
    except (OSError, IndexError, ValueError):  # a thread that has just ended, among others
        return None


def _major_faults() -> int:
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def likely_reason(before: Usage, after: Usage, *, slowed_gpu: Callable[[], bool]) -> str:
    """Why what began at `before` is not over at `after`, in words.

    Args:
        before: At the beginning.
        after: Now.
        slowed_gpu: Whether a GPU runs below its clock against its will.
    """
    seconds = max(after.at_s - before.at_s, 1e-3)
    faults = after.major_faults - before.major_faults
    if faults > FAULTS_PER_S * seconds:
        return f"memory is short: {faults:,} pages were read back from disk (swapping)"
    waited = _share_waited(before, after)
    if waited > SHARE_WAITED:
        return f"other processes have the CPU: it waited for a core {_waited_text(waited)}"
    if slowed_gpu():
        return "the GPU is throttled (heat or power)"
    return "the CPU, memory and GPU show no reason; a disk or file server may be slow, or the process was stopped"


def contention_text(before: Usage, after: Usage, threads: str | None) -> str | None:
    """That other processes slow training down, and what to do; None where they do not, or nothing can be done.

    Threads of one step wait for each other, and spin while they wait: where one of them has no core, the others keep
    theirs busy for nothing. With a core less than threads a step takes several times as long as with one thread
    (docs/performance.md).

    Args:
        before: Some time ago; training since.
        after: Now.
        threads: The environment's `OMP_NUM_THREADS`.
    """
    waited = _share_waited(before, after)
    if waited <= SHARE_WAITED or threads == "1":
        return None
    return (
        f"other processes have the CPU: training waited for a core {_waited_text(waited)}; threads that wait for each "
        "other make that worse: if the base is on the CPU, stop (Ctrl-C) and go on with OMP_NUM_THREADS=1, or with "
        "as many as there are free cores"
    )


def _share_waited(before: Usage, after: Usage) -> float:
    """Of the time between the two, at most 1; 0 where the system does not count it."""
    if before.waited_s is None or after.waited_s is None:
        return 0.0
    return min(1.0, (after.waited_s - before.waited_s) / max(after.at_s - before.at_s, 1e-3))


def _waited_text(share: float) -> str:
    return f"{100 * share:.0f}% of the time (load {number_text(os.getloadavg()[0])} on {os.cpu_count() or 1})"


def gpu_is_slowed() -> bool:
    """Whether some NVIDIA GPU says that it has to run below its clock; False where none can be asked."""
    if shutil.which("nvidia-smi") is None:
        return False
    words = ["nvidia-smi", "--query-gpu=clocks_event_reasons.active", "--format=csv,noheader"]
    try:
        told = subprocess.run(words, capture_output=True, text=True, timeout=5, check=False).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return False
    return is_slowed(told.split())


def is_slowed(reasons: Sequence[str]) -> bool:
    """Whether one of NVIDIA's bit masks of reasons for a lower clock has one that is no choice."""
    return any(int(mask, 16) & SLOWED for mask in reasons if mask.startswith("0x"))


def slow_text(what: str, seconds: float, usual_s: float, reason: str) -> str:
    """A slow step in words: what it is, how long it takes, how long it usually takes, and the likely reason."""
    step = "a step" if what == "training" else f"a part of {what}"
    return f"slow: {step} takes {duration_text(seconds)} so far, usually {duration_text(usual_s)}; {reason}"
