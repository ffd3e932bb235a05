"""The device, its clocks and its memory."""

from __future__ import annotations

import contextlib
import functools
import gc
import statistics
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@functools.cache
def on_gpu() -> bool:
    return torch.cuda.is_available()


def sync() -> None:
    if on_gpu():
        torch.cuda.synchronize()


def device() -> Any:
    return torch.device("cuda", 0) if on_gpu() else torch.device("cpu")


def free_all() -> None:
    gc.collect()
    if on_gpu():
        torch.cuda.empty_cache()


def out_of_memory(error: BaseException) -> bool:
    text = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "out of memory" in text or "ALLOC_FAILED" in text


def gpu_ms(action: Callable[[], Any], reps: int = 5, inner: int = 1, warm: int = 2) -> float:
    """Median milliseconds of one `action`, by events where there is a GPU; `inner` of them between two events."""
    for _ in range(warm):
        action()
    times = []
    for _ in range(reps):
        if on_gpu():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            for _ in range(inner):
                action()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / inner)
        else:
            begun = time.perf_counter()
            for _ in range(inner):
                action()
            times.append(1000 * (time.perf_counter() - begun) / inner)
    return statistics.median(times)


def wall_ms(action: Callable[[], Any], count: int) -> float:
    """Host milliseconds of one `action`, without waiting for the device."""
    sync()
    begun = time.perf_counter()
    for _ in range(count):
        action()
    spent = time.perf_counter() - begun
    sync()
    return 1000 * spent / count


@contextlib.contextmanager
def patched(place: Any, name: str, new: Any) -> Iterator[None]:
    old = getattr(place, name)
    setattr(place, name, new)
    try:
        yield
    finally:
        setattr(place, name, old)


def kernels(action: Callable[[], Any]) -> dict:
    """What the device did during `action`: launches, busy time, the longest kernels."""

    cuda = on_gpu()
    activities = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    sync()
    begun = time.perf_counter()
    with profile(activities=activities) as profiler:
        action()
        sync()
        wall = 1000 * (time.perf_counter() - begun)
    spans, names, times = [], Counter(), Counter()
    for one in profiler.events():
        if cuda and "CUDA" not in str(one.device_type):
            continue
        start, end = 1000 * one.time_range.start, 1000 * one.time_range.end
        spans.append((start, end))
        names[one.name] += 1
        times[one.name] += end - start
    busy, last = 0.0, -1.0
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, last))
        last = max(last, end)
    whole = (max(end for _, end in spans) - min(start for start, _ in spans)) if spans else 0
    copies = sum(count for name, count in names.items() if name.startswith(("Memcpy", "Memset")))
    return {
        "launches": sum(names.values()) - copies,
        "copies": copies,
        "busy_ms": busy / 1e6,
        "span_ms": whole / 1e6,
        "wall_ms": wall,
        "top": [[name[:70], names[name], round(spent / 1e6, 2)] for name, spent in times.most_common(6)],
        "attention": sorted(
            {name[:80] for name in names if any(w in name.lower() for w in ("flash", "cudnn", "fmha", "attention"))}
        )[:6],
    }


def memory_now(*, exact: bool = False) -> dict:
    stats = torch.cuda.memory_stats()
    found = {
        "allocated": torch.cuda.max_memory_allocated(),
        "requested": stats.get("requested_bytes.all.peak", 0),
        "reserved": torch.cuda.max_memory_reserved(),
    }
    if exact:
        return found | {"retries": stats.get("num_alloc_retries", 0)}
    return {f"{name}_gb": value / 1e9 for name, value in found.items()}


def attention_by(run: Callable[[], dict], *, cudnn: bool) -> dict:
    was = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    try:
        return run() | {"cudnn": cudnn}
    finally:
        torch.backends.cuda.enable_cudnn_sdp(was)
