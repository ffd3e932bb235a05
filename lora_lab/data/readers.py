"""Files of rows -> raw rows, each with its place (`file:line`) and, where it cannot be read, the damage.

A damaged row is passed on rather than raised, so that one run finds all of them. JSON and CSV are read with
the standard library: `datasets` knows no line numbers, and reads the CSV texts `NA` and `null` as missing and
`12` as 12.0. Parquet is read with pyarrow: `datasets` takes brackets in a path for a pattern, and makes a
second copy of the file.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

MAX_TEXT_CHARS = 4_000_000
"""Longest text of one row: about a million tokens. More is an export gone wrong, not an example."""

EMPTY_LINE = "empty line; delete it"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in its source, not yet validated."""

    place: str
    """`file:line`, or `source[index]` (from 0) where there are no lines."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    damage: str = ""
    """What makes the row unreadable, and what to do; empty for a row that could be read."""


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a `.jsonl`, `.json`, `.csv` or `.parquet` file, in order.

    Raises InputError for another kind of file, and for one that cannot be opened or is damaged as a whole.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: a dataset is a {', '.join(READERS)} file, but this ends in {path.suffix!r}")
    try:
        yield from _without_last_empty_lines(reader(path))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


def _without_last_empty_lines(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Empty lines at the end of a file are harmless; within it they are what is left of a lost row."""
    held_back: list[RawRow] = []
    for row in rows:
        held_back.append(row)
        if row.damage != EMPTY_LINE:
            yield from held_back
            held_back.clear()


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:80]!r} stands twice")
    return result


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique_keys)


def _syntax_error(error: json.JSONDecodeError) -> str:
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"


def _as_row(place: str, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(place, value)
    return RawRow(place, damage=f"a row is a JSON object, but this is a {type(value).__name__}; write {{...}}")


def _json_line(place: str, raw: bytes, encoding: str) -> RawRow:
    if not raw.strip():
        return RawRow(place, damage=EMPTY_LINE)
    try:
        return _as_row(place, _parse_json(raw.rstrip(b"\r\n").decode(encoding)))
    except UnicodeDecodeError as error:
        return RawRow(place, damage=f"bad UTF-8: {error.reason} at byte {error.start + 1}; save the file as UTF-8")
    except json.JSONDecodeError as error:
        return RawRow(
            place,
            damage=f"bad JSON: {_syntax_error(error)}; write one object per line",
        )
    except (ValueError, RecursionError) as error:
        return RawRow(place, damage=f"bad JSON: {error}; correct or delete the row")


def _read_jsonl(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            yield _json_line(f"{path}:{number}", raw, "utf-8-sig" if number == 1 else "utf-8")


def _read_json(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as file:
        start = file.read(64).decode("utf-8-sig", errors="ignore").lstrip()
    if not start.startswith("["):
        yield from _read_jsonl(path)
        return
    try:
        values = _parse_json(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: bad UTF-8: {error.reason} at byte {error.start + 1}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: bad JSON: {_syntax_error(error)}; correct it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: bad JSON: {error}; correct it") from None
    for index, value in enumerate(values):
        yield _as_row(f"{path}[{index}]", value)


def _csv_header(path: Path, reader: Iterator[list[str]]) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InputError(f"{path}:1: bad CSV: {error}; the first line holds the column names") from None
    if len(set(header)) < len(header):
        raise InputError(f"{path}:1: column names must differ, but are {str(header)[:200]}; rename them")
    return header


def _csv_row(place: str, header: list[str], values: list[str]) -> RawRow:
    if not values:
        return RawRow(place, damage=EMPTY_LINE)
    if len(values) != len(header):
        return RawRow(
            place,
            damage=f"{len(values)} values for {len(header)} columns; quote texts with commas or newlines",
        )
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return RawRow(place, damage="bad UTF-8; save the file as UTF-8")
    return RawRow(place, dict(zip(header, values, strict=True)))


def _read_csv(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(4 * MAX_TEXT_CHARS)  # the module's own limit of 131,072 is below a long document
    # surrogateescape: a bad byte must cost its own row only, where a strict decoder gives up on the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        header = _csv_header(path, reader)
        while True:
            place = f"{path}:{reader.line_num + 1}"
            try:
                yield _csv_row(place, header, next(reader))
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(place, damage=f"bad CSV: {error}; check the quotes")


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            index = 0
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield RawRow(f"{path}[{index}]", row)
                    index += 1
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged Parquet file ({str(error)[:200]}); write it again") from None


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}
