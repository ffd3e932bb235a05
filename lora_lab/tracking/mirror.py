"""The mirror: a thread that follows a study's journal and keeps MLflow in step with it.

It is never on the training path and never fatal. Whatever MLflow does, the journal grows on disk; the thread
tries again after 1, 2, 4, ... 30 s. A cursor file in the run folder says how much has arrived; it is an
optimization only, since sending twice changes nothing (see `lora_lab.tracking.store`).
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from lora_lab.common.files import write_durably
from lora_lab.common.secrets import redact, secrets_of
from lora_lab.tracking.address import shown_uri
from lora_lab.tracking.journal import JOURNAL_NAME, journal_id, read

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.tracking.store import MlflowStore

CURSOR_NAME = "mlflow.cursor"
LOCK_NAME = "mlflow.lock"
ENTRIES_PER_CHUNK = 2000
FIRST_DELAY_S, LONGEST_DELAY_S = 1.0, 30.0
POLL_S = 1.0
ERROR_WIDTH = 160
BLOCK_BYTES = 1 << 20

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}
"""No telemetry, no lines on the terminal, and no waiting inside MLflow: the mirror does its own."""


class MlflowMirror:
    """Follows the journal in `folder` (whose name is the experiment's) into an MLflow store.

    Only one process sends for a study; a second one waits for its turn.

    Args:
        folder: The study's.
        tracking_uri: The store, as `resolve_tracking_uri` gives it.
    """

    def __init__(self, folder: Path, tracking_uri: str) -> None:
        self._folder = folder
        self._tracking_uri = tracking_uri
        self._lock = FileLock(folder / LOCK_NAME, blocking=False, thread_local=False)
        self._stop = threading.Event()
        self._deadline = math.inf
        self._store: MlflowStore | None = None
        self._offset = 0
        self._problem = "MLflow is starting"
        self._thread = threading.Thread(target=self._follow, name="mlflow-mirror", daemon=True)

    def start(self) -> None:
        """Begin to follow; MLflow is imported in the background."""
        self._thread.start()

    @property
    def status(self) -> str:
        """`ok`, or `behind: N events (why)`."""
        return f"behind: {self._pending()} events ({self._problem})" if self._problem else "ok"

    def close(self, timeout_s: float = 30.0) -> str | None:
        """Send what is left, for at most `timeout_s`; one line to show where something remains to be sent."""
        self._deadline = time.monotonic() + timeout_s
        self._stop.set()
        self._thread.join(timeout_s)
        pending = self._pending()
        if not pending:
            return None
        return (
            f"MLflow at {shown_uri(self._tracking_uri)} lacks {pending} events "
            f"({self._problem or 'there was not enough time'}); they are kept "
            f"in {self._folder / JOURNAL_NAME}, and the next sweep or ui command of this study sends them"
        )

    def _follow(self) -> None:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        delay_s = FIRST_DELAY_S
        try:
            while True:
                is_last = self._stop.is_set()  # asked before the pass, so that the last pass sees every entry
                try:
                    self._catch_up()
                    self._problem, wait_s, delay_s = "", POLL_S, FIRST_DELAY_S
                except Exception as error:  # noqa: BLE001 - whatever MLflow raises is shown_uri, and training goes on
                    self._problem, self._store = _one_line(error, self._tracking_uri), None
                    wait_s, delay_s = delay_s, min(2 * delay_s, LONGEST_DELAY_S)
                if is_last:
                    return
                self._stop.wait(wait_s)
        finally:
            self._lock.release()

    def _catch_up(self) -> None:
        """Send everything that the journal holds beyond the cursor."""
        if self._store is None:
            self._store = self._connect()
        if self._store is None:
            return
        entries = read(self._folder, self._offset)
        while chunk := list(islice(entries, ENTRIES_PER_CHUNK)):
            _to_disk(self._folder / JOURNAL_NAME)
            self._store.send([entry for entry, _ in chunk])
            self._offset = chunk[-1][1]
            self._save_cursor()
            if time.monotonic() > self._deadline:
                return

    def _connect(self) -> MlflowStore | None:
        """The store, with the offset from which to send; None while there is no journal."""
        identity = journal_id(self._folder)
        if identity is None:
            return None
        if not self._lock.is_locked:
            self._lock.acquire()
        from lora_lab.tracking.store import MlflowStore

        store = MlflowStore(self._tracking_uri, self._folder.resolve().name, identity)
        self._offset = 0 if store.is_new else self._load_cursor()
        return store

    def _load_cursor(self) -> int:
        """How many bytes of the journal this store has; 0 where that is not known: sending twice is safe."""
        try:
            cursor = json.loads((self._folder / CURSOR_NAME).read_text())
            offset = int(cursor["offset"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        is_same = cursor.get("tracking_uri") == shown_uri(self._tracking_uri)
        return offset if is_same and offset <= (self._folder / JOURNAL_NAME).stat().st_size else 0

    def _save_cursor(self) -> None:
        cursor = {"tracking_uri": shown_uri(self._tracking_uri), "offset": self._offset}
        write_durably(self._folder / CURSOR_NAME, json.dumps(cursor))

    def _pending(self) -> int:
        """Entries that MLflow does not have yet."""
        path = self._folder / JOURNAL_NAME
        if not path.exists():
            return 0
        with path.open("rb") as file:
            file.seek(self._offset)
            lines = sum(block.count(b"\n") for block in iter(lambda: file.read(BLOCK_BYTES), b""))
        has_header = self._offset == 0 and lines > 0
        return lines - has_header


def catch_up(folder: Path, tracking_uri: str, timeout_s: float = 60.0) -> str | None:
    """Send what earlier commands could not; one line to show where something remains to be sent."""
    mirror = MlflowMirror(folder, tracking_uri)
    mirror.start()
    return mirror.close(timeout_s)


def _to_disk(path: Path) -> None:
    """Make sure that a power cut cannot take back an entry which MLflow has already."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _one_line(error: Exception, tracking_uri: str) -> str:
    if isinstance(error, Timeout):
        return "another process of this study is sending"
    text = " ".join(redact(str(error), secrets_of(tracking_uri)).split()) or type(error).__name__
    return text if len(text) <= ERROR_WIDTH else f"{text[:ERROR_WIDTH]}..."
