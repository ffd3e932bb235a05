"""What a study's coordinator says of itself in `status.json`, and whether it is still there."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from pathlib import Path

SILENCE = timedelta(minutes=2)
"""A coordinator on another machine that has written nothing for so long is taken for gone."""


@dataclass(frozen=True, slots=True)
class Status:
    """The newest `status.json` of a study."""

    state: str
    """`running`, `stopping` or `ended`, as the coordinator wrote it."""
    written_at: datetime
    host: str
    pid: int
    left_s: float | None
    """Seconds to the end of the study, as far as that was known."""

    def is_alive(self, now: datetime | None = None) -> bool:
        """Whether the process that wrote it still works on the study."""
        if self.state == "ended":
            return False
        if self.host == socket.gethostname():
            return bool(psutil.pid_exists(self.pid))
        return (now or datetime.now(UTC)) - self.written_at < SILENCE


def read_status(path: Path) -> Status | None:
    """The status in a run folder; None where there is none, or none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        written = datetime.fromisoformat(values["written_at"])
        return Status(values["state"], written, values["host"], int(values["pid"]), values["left_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
