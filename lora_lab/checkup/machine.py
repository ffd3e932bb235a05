"""The machine itself: Python and its packages, processors, memory, disk and clock."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path

import joblib
import psutil
from packaging.requirements import Requirement

from lora_lab.checkup.finding import Finding
from lora_lab.common.errors import StorageError
from lora_lab.common.sizes import bytes_text
from lora_lab.search.file_system import check_is_local, file_system

PACKAGE = "lora-lab"
BUSY = 0.5
"""Of the granted CPUs, the share that others may use before it is worth a note."""
LITTLE_DISK = 5 * 2**30
LITTLE_MEMORY = 2 * 2**30
CLOCK_APART_S = 5.0
"""By which a file's time may differ from this process's clock; more means another machine's clock."""
EARLIEST = datetime(2026, 1, 1, tzinfo=UTC)
"""lora_lab is younger than this."""


def python_and_packages() -> Finding:
    """Whether every package is there in a version that lora_lab was written for."""
    wanted = _wanted()
    wrong = [text for one in wanted if (text := _wrong(one))]
    versions = {one.name: _installed(one.name) for one in wanted}
    values = {"python": platform.python_version(), "lora_lab": version(PACKAGE), "packages": versions}
    if wrong:
        words = f"{'; '.join(wrong)}; run pip install 'lora-lab=={version(PACKAGE)}' again in this environment"
        return Finding("packages", "problem", words, values)
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft", "optuna", "mlflow"))
    words = f"Python {platform.python_version()} ({sys.prefix}), lora_lab {version(PACKAGE)}, {named}"
    return Finding("packages", "ok", words, values)


def extras() -> Finding:
    """Which optional parts are installed."""
    lacking = {
        extra: any(_wrong(one) for one in _wanted(extra)) for extra in metadata(PACKAGE).get_all("Provides-Extra", [])
    }
    here = [extra for extra, is_lacking in lacking.items() if not is_lacking]
    absent = [extra for extra, is_lacking in lacking.items() if is_lacking]
    words = [f"{', '.join(here)} installed"] if here else []
    words += [f"{', '.join(absent)} not (pip install 'lora-lab[NAME]')"] if absent else []
    return Finding("extras", "ok", "; ".join(words), {"installed": here, "not_installed": absent})


def _wanted(extra: str = "") -> list[Requirement]:
    """What lora_lab needs in any case, or for one of its extras alone; other extras that it names are left out."""
    return [
        one
        for one in map(Requirement, requires(PACKAGE) or ())
        if one.name != PACKAGE
        and (one.marker is None or one.marker.evaluate({"extra": extra}))
        and (not extra or (one.marker is not None and not one.marker.evaluate({"extra": ""})))
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _wrong(requirement: Requirement) -> str | None:
    found = _installed(requirement.name)
    if found is None:
        return f"{requirement.name} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} is {found}, but must be {requirement.specifier}"
    return None


def processors() -> Finding:
    """The CPUs that this process is granted, and whether others keep them busy."""
    granted, present = joblib.cpu_count(), os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    values = {"granted": granted, "present": present, "load_1min": load, "threads": os.environ.get("OMP_NUM_THREADS")}
    words = f"{granted} CPUs" if granted == present else f"{granted} of {present} CPUs granted (affinity or quota)"
    if values["threads"]:
        words += f", OMP_NUM_THREADS={values['threads']}"
    if load > BUSY * granted:
        words += f"; load {load:.1f}: other processes use them, so that steps on a CPU take longer"
        return Finding("processors", "note", words, values)
    return Finding("processors", "ok", words, values)


def memory() -> Finding:
    """Main memory, of which a base on a CPU lives, and through which one for a GPU is read."""
    known = psutil.virtual_memory()
    values = {"available_bytes": known.available, "total_bytes": known.total}
    words = f"{bytes_text(known.available)} of {bytes_text(known.total)} available"
    if known.available < LITTLE_MEMORY:
        return Finding("memory", "note", f"{words}; end other programs before a study", values)
    return Finding("memory", "ok", words, values)


def disk(folder: Path) -> Finding:
    """The place of run folders: whether it can be written, keeps locks, and has room."""
    kind, free = file_system(folder), shutil.disk_usage(folder).free
    values = {"folder": str(folder), "free_bytes": free, "file_system": kind}
    words = f"{bytes_text(free)} free in {folder}" + (f" ({kind})" if kind else "")
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"x")
    except OSError as error:
        text = f"{folder} cannot be written ({error.strerror}); run from another folder"
        return Finding("disk", "problem", text, values)
    try:
        check_is_local(folder / "study.db")
    except StorageError as error:
        return Finding("disk", "problem", str(error), values)
    if free < LITTLE_DISK:
        return Finding("disk", "note", f"{words}; adapters and checkpoints of a study take gigabytes", values)
    return Finding("disk", "ok", words, values)


def clock(folder: Path) -> Finding:
    """Whether this machine's clock is plausible, and that of the file system is the same."""
    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        before = time.time()
        probe.write(b"x")
        probe.flush()
        apart = Path(probe.name).stat().st_mtime - before
    now = datetime.now(UTC)
    values = {"now": now.isoformat(timespec="seconds"), "file_system_apart_s": round(apart, 3)}
    if now < EARLIEST:
        return Finding("clock", "problem", f"it is {now:%Y-%m-%d} by this machine's clock; set it", values)
    if abs(apart) > CLOCK_APART_S:
        text = f"files in {folder} get times {apart:+.0f} s from this machine's clock; no study depends on them"
        return Finding("clock", "note", text, values)
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M} UTC", values)
