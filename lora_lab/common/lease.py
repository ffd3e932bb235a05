"""A lease on a file: one process at a time may hold what it stands for, by a lock of the operating system.

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
def lease(path: Path, what: object) -> Iterator[None]:
    """Hold a lease for this process.

    Args:
        path: The file that is locked; beside it stands who holds it.
        what: What the lease is on, for the message.

    Raises:
        StudyLockedError: another process holds it; the message says which.
    """
    lock = FileLock(path, timeout=0)
    holder = path.with_suffix(".json")
    try:
        lock.acquire()
    except Timeout:
        raise StudyLockedError(locked(what, _describe(holder))) from None
    try:
        holder.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def locked(what: object, holder: str) -> str:
    """The message for what another coordinator holds."""
    return (
        f"another coordinator works on {what} ({holder}); wait for it or stop it, or start a second study with --fresh"
    )


def _describe(holder: Path) -> str:
    try:
        known = json.loads(holder.read_text())
        return f"process {known['pid']} on {known['host']}"
    except (OSError, ValueError, KeyError):
        return "process unknown"
