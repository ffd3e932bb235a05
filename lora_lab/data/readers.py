"""Files of rows -> raw rows, each with its place (`file:line`) and, where it cannot be read, the damage.

A damaged row is passed on rather than raised, so that one run finds all of them. JSON and CSV are read with
the standard library: `datasets` knows no line numbers, and reads the CSV texts `NA` and `null` as missing and
`12` as 12.0. Parquet and Arrow are read with pyarrow: `datasets` takes brackets in a path for a pattern, and makes a
second copy of the file.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from lora_lab.common.errors import InputError
from lora_lab.data.opening import DAMAGED, check_is_data, is_compressed, kind_of, open_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

MAX_TEXT_CHARS = 4_000_000
"""Longest text of one row: about a million tokens. More is an export gone wrong, not an example."""

EMPTY_LINE = "empty line; delete it"

DELIMITERS = ",;\t|"
"""Of CSV; where the first line has several, the first one here."""

WRAPPERS = ("data", "rows", "examples", "instances", "train")
"""Keys under which a JSON file that is one object may have its rows."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it stands in its source, not yet validated."""

    place: str
    """`file:line`, or `source[index]` (from 0) where there are no lines."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    damage: str = ""
    """What makes the row unreadable, and what to do; empty for a row that could be read."""


class ClassName(str):
    """The name of a class where the data declare all of them in their order (`datasets.ClassLabel`)."""

    __slots__ = ("names",)
    names: tuple[str, ...]

    def __new__(cls, names: tuple[str, ...], index: int) -> Self:
        """The name with this index."""
        name = super().__new__(cls, names[index])
        name.names = names
        return name


def read_rows(path: Path) -> Iterator[RawRow]:
    """The rows of a JSON, CSV, Parquet or Arrow file, in order; `.gz`, `.bz2`, `.xz` and `.zst` are decompressed.

    Raises:
        InputError: another kind of file, or one that cannot be opened or is damaged as a whole.
    """
    kind = kind_of(path)
    reader = READERS.get(kind)
    if reader is None:
        raise InputError(f"{path}: a dataset is a {', '.join(READERS)} file, but this ends in {path.suffix!r}")
    if kind in COLUMNAR and is_compressed(path):
        raise InputError(f"{path}: a {kind} file is compressed inside, but this ends in {path.suffix!r}; decompress it")
    try:
        check_is_data(path)
        yield from _without_last_empty_lines(reader(path))
    except DAMAGED as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is None and is_compressed(path):
            raise _damaged(path, error) from None
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from None


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: the compressed file is damaged ({str(error)[:200]}); write or download it again")


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
    with open_rows(path) as file:
        for number, raw in enumerate(file, start=1):
            yield _json_line(f"{path}:{number}", raw, "utf-8-sig" if number == 1 else "utf-8")


def _read_json(path: Path) -> Iterator[RawRow]:
    with open_rows(path) as file:
        first = file.readline().decode("utf-8-sig", errors="ignore").strip()
    if first.startswith("["):
        yield from _json_list(path)
    else:
        wrapped = _wrapped_rows(path, first) if first.startswith("{") else None
        yield from _read_jsonl(path) if wrapped is None else wrapped


def _json_list(path: Path) -> Iterator[RawRow]:
    try:
        values = _parse_json(_whole(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: bad UTF-8: {error.reason} at byte {error.start + 1}; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: bad JSON: {_syntax_error(error)}; correct it") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: bad JSON: {error}; correct it") from None
    for index, value in enumerate(values):
        yield _as_row(f"{path}[{index}]", value)


def _whole(path: Path) -> bytes:
    with open_rows(path) as file:
        return file.read()


def _wrapped_rows(path: Path, first_line: str) -> list[RawRow] | None:
    """The rows in `{"data": [...]}`; None for lines of JSON, one object each, and for what is neither."""
    try:
        line = _parse_json(first_line)
        if not any(name in line for name in WRAPPERS):
            return None
    except (ValueError, RecursionError):
        pass  # no object ends on the first line
    try:
        whole = _parse_json(_whole(path).decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    lists = [name for name in WRAPPERS if isinstance(whole.get(name), list)]
    if len(lists) != 1:
        return None
    return [_as_row(f"{path}.{lists[0]}[{index}]", value) for index, value in enumerate(whole[lists[0]])]


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


def _delimiter(path: Path, first_line: str) -> str:
    """The character that parts the column names: by the name of a .tsv file, else the one that makes the most of them.

    A comma is taken before others, so that a comma file with semicolons in its names stays one.
    """
    if kind_of(path) == ".tsv":
        return "\t"
    columns = {one: len(next(csv.reader([first_line], delimiter=one), [])) for one in DELIMITERS}
    return "," if columns[","] > 1 else max(DELIMITERS, key=lambda one: columns[one])


def _read_csv(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(4 * MAX_TEXT_CHARS)  # the module's own limit of 131,072 is below a long document
    # surrogateescape: a bad byte must cost its own row only, where a strict decoder gives up on the file.
    with (
        open_rows(path) as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        first_line = file.readline()
        lines = itertools.chain([first_line] if first_line else [], file)
        reader = csv.reader(lines, strict=True, delimiter=_delimiter(path, first_line))
        header = _csv_header(path, reader)
        while True:
            place = f"{path}:{reader.line_num + 1}"
            try:
                yield _csv_row(place, header, next(reader))
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(place, damage=f"bad CSV: {error}; check the quotes")


def arrow_rows(batches: Iterable[Any], source: str) -> Iterator[RawRow]:
    """The rows of Arrow batches or tables as plain values: no image or audio is decoded, JSON columns are.

    A null in a struct is left out: Arrow has one for every key that other rows have. A column of numbers that the
    schema declares to be classes gives their names.
    """
    index = 0
    for batch in batches:
        classes = _declared_classes(batch.schema)
        nested = {column.name: column.type for column in batch.schema if _is_nested(column.type)}
        for row in batch.to_pylist():
            fields = row | {name: _plain(row[name], kind) for name, kind in nested.items()}
            fields |= {name: _class_name(names, row[name]) for name, names in classes.items()}
            yield RawRow(f"{source}[{index}]", fields)
            index += 1


def _declared_classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """The names of classes by column, which `datasets` writes into the metadata of a schema."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return {
        name: tuple(map(str, feature["names"]))
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
    }


def _class_name(names: tuple[str, ...], value: Any) -> Any:
    """The name of a class; what is no index of one (null, or the -1 of test splits) stays as it is."""
    return ClassName(names, value) if isinstance(value, int) and 0 <= value < len(names) else value


def _is_nested(kind: Any) -> bool:
    import pyarrow as pa  # type: ignore[import-untyped]

    return isinstance(kind, pa.JsonType) or pa.types.is_nested(kind)


def _plain(value: Any, kind: Any) -> Any:
    import pyarrow as pa

    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if pa.types.is_struct(kind):
        inner = {column.name: _plain(value[column.name], column.type) for column in kind}
        return {name: one for name, one in inner.items() if one is not None}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_plain(one, kind.value_type) for one in value]
    return value


def _read_parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            yield from arrow_rows(file.iter_batches(), str(path))
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged Parquet file ({str(error)[:200]}); write it again") from None


def _read_arrow(path: Path) -> Iterator[RawRow]:
    """Read Arrow batches from a stream, as `datasets` writes it, or from a file (Feather)."""
    import pyarrow as pa
    from pyarrow import ipc

    try:
        with pa.memory_map(str(path)) as file:
            if file.read(6) == b"ARROW1":
                reader = ipc.open_file(file)
                yield from arrow_rows(map(reader.get_batch, range(reader.num_record_batches)), str(path))
            else:
                file.seek(0)
                yield from arrow_rows(ipc.open_stream(file), str(path))
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged Arrow file ({str(error)[:200]}); write it again") from None


READERS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
    ".feather": _read_arrow,
}

COLUMNAR = (".parquet", ".arrow", ".feather")
