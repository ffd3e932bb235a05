"""The journal: what happened in a study, in order, one JSON line each, in `events.jsonl` of its run folder.

One process writes (`Journal`), any number read (`read`). Lines are written without a buffer, in one system
call, so a killed process loses at most the line it was writing; such a torn last line is ignored by readers
and cut when the journal is opened again. Not-a-number is written as `NaN`, as Python does.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lora_lab.common.errors import StorageError
from lora_lab.common.secrets import redact
from lora_lab.study.events import Evaluated, Logged
from lora_lab.tracking.records import KINDS, DatasetInput, TrialEnded

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from lora_lab.tracking.records import Record

JOURNAL_NAME = "events.jsonl"
HEADER = "Journal"

FORMER_FIELDS = {"Finished": ("adapter_folder",)}
"""Fields that journals of earlier versions have and that say nothing which is not known otherwise."""
FIELD_NAMES = {kind: tuple(item.name for item in fields(kind)) for kind in KINDS.values()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as it stands in the journal; `at_ms` is when it was appended, in ms since 1970.

    The times of later appends are later, whatever the clock does, so no duration is negative.
    """

    record: Record
    at_ms: int


def _plain(value: Any, folder: Path) -> Any:
    """A field as JSON has it: texts without secrets, paths in the run folder relative to it."""
    match value:
        case int() | float() | None:
            return value
        case str():
            return redact(value)
        case Path():
            return str(value.relative_to(folder) if value.is_relative_to(folder) else value)
        case DatasetInput():
            return {item.name: _plain(getattr(value, item.name), folder) for item in fields(value)}
        case Mapping():
            return {key: _plain(item, folder) for key, item in value.items()}
        case tuple() | list():
            return [_plain(item, folder) for item in value]
    raise TypeError(f"a record holds numbers, texts, paths, lists and mappings, but got {type(value).__name__}")


def _encode(record: Record, at_ms: int, folder: Path) -> bytes:
    kind = type(record)
    line = {"kind": kind.__name__, "at_ms": at_ms}
    line.update((name, _plain(getattr(record, name), folder)) for name in FIELD_NAMES[kind])
    return json.dumps(line).encode() + b"\n"


def _decode(line: bytes, folder: Path) -> Entry | None:
    """The entry of one line, None for the header."""
    values = json.loads(line)
    kind, at_ms = values.pop("kind"), values.pop("at_ms")
    if kind == HEADER:
        return None
    for name in ("path", "adapter_folder"):
        if values.get(name) is not None:
            values[name] = folder / values[name]
    for name in FORMER_FIELDS.get(kind, ()):
        values.pop(name, None)
    if "params" in values:
        values["params"] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values["params"].items()
        }
    if "datasets" in values:
        values["datasets"] = tuple(DatasetInput(**dataset) for dataset in values["datasets"])
    if isinstance(values.get("searched"), list):
        values["searched"] = tuple(values["searched"])
    return Entry(KINDS[kind](**values), at_ms)


def read(folder: Path, from_offset: int = 0) -> Iterator[tuple[Entry, int]]:
    """Every complete entry from byte `from_offset` on, with the offset behind it.

    Raises:
        StorageError: the file cannot be read, or a line in it is damaged.

    """
    path = folder / JOURNAL_NAME
    offset = from_offset
    try:
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                entry = _decode(line, folder)
                offset += len(line)
                if entry is not None:
                    yield entry, offset
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path}: the line at byte {offset} is no record of this lora_lab; delete it to go on"
        ) from error


def journal_id(folder: Path) -> str | None:
    """The identity of the journal in this run folder, None where there is none."""
    try:
        with (folder / JOURNAL_NAME).open("rb") as file:
            header = file.readline()
        return str(json.loads(header)["id"]) if header.endswith(b"\n") else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"{folder / JOURNAL_NAME}: line 1 is not the header of a journal; move the file away to go on"
        ) from error


class Journal:
    """The writing end of a study's journal; made where there is none, continued where there is one.

    Of the `Logged` and `Evaluated` events of a trial only those beyond its last journaled step are kept: what
    a resumed trial repeats since its checkpoint is dropped, and its curve has every step exactly once.

    Raises:
        StorageError: the folder cannot be written, the disk is full, or the journal is damaged.

    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._last_ms = 0
        self._last_step: dict[tuple[type[Record], int], int] = {}
        self.ended_trials: set[int] = set()
        """Numbers of the trials whose end was journaled before this journal was opened."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            self._end = self._cut_torn_line()
        except OSError as error:
            raise StorageError(f"cannot open {self._path} for writing: {error.strerror}") from error
        if self._end == 0:
            header = {"kind": HEADER, "at_ms": self._next_ms(), "version": 1, "id": uuid.uuid4().hex}
            self._write(json.dumps(header).encode() + b"\n")
        for entry, _ in read(folder):
            self._last_ms = entry.at_ms
            if isinstance(entry.record, (Logged, Evaluated)):
                self._last_step[type(entry.record), entry.record.number] = entry.record.step
            elif isinstance(entry.record, TrialEnded):
                self.ended_trials.add(entry.record.number)

    def append(self, *records: Record) -> None:
        """Write the records that are new, in one system call; they are in the file when this returns."""
        with self._lock:
            at_ms = self._next_ms()
            steps: dict[tuple[type[Record], int], int] = {}
            new = [_encode(record, at_ms, self.folder) for record in records if self._is_new(record, steps)]
            if new:
                self._write(b"".join(new))
            self._last_step.update(steps)

    def close(self) -> None:
        """Close the file; the journal takes no more records."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _path(self) -> Path:
        return self.folder / JOURNAL_NAME

    def _next_ms(self) -> int:
        self._last_ms = max(time.time_ns() // 1_000_000, self._last_ms + 1)
        return self._last_ms

    def _is_new(self, record: Record, steps: dict[tuple[type[Record], int], int]) -> bool:
        """Whether the record is to be kept; notes its step in `steps`, which count once they are written."""
        if not isinstance(record, (Logged, Evaluated)):
            return True
        key = (type(record), record.number)
        if record.step <= steps.get(key, self._last_step.get(key, -1)):
            return False
        steps[key] = record.step
        return True

    def _cut_torn_line(self) -> int:
        """Cut what stands behind the last complete line; return the length of the rest."""
        content = self._path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.ftruncate(self._file, end)
        return end

    def _write(self, lines: bytes) -> None:
        written = 0
        try:
            while written < len(lines):
                written += os.write(self._file, lines[written:])
        except OSError as error:
            os.ftruncate(self._file, self._end)
            raise StorageError(
                f"cannot write {self._path}: {error.strerror}; free some space and run the same command again"
            ) from error
        self._end += written
