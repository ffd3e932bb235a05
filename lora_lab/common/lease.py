"""One coordinator per study: a lock of the operating system on a file in the run folder.

The lock is gone when its holder is, also after `kill -9`; no clock takes part, so none can be wrong.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lora_lab.common.errors import StudyLockedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def lease(path: Path) -> Iterator[None]:
    """Hold the study for this process.

    Raises:
        StudyLockedError: another process holds it; the message says which.
    """
    lock = FileLock(path, timeout=0)
    holder = path.with_suffix(".json")
    try:
        lock.acquire()
    except Timeout:
        raise StudyLockedError(
            f"another coordinator works on {path.parent} ({_describe(holder)}); "
            "wait for it or stop it, or start a second study with --fresh"
        ) from None
    try:
        holder.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text())
        return f"process {known['pid']} on {known['host']}"
    except (OSError, ValueError, KeyError):
        return "process unknown"
