"""A strict reader of YAML: plain data, and the line of every key; everything ambiguous or clever is refused.

It is a subset of YAML 1.2: mappings with text keys, lists, text, numbers, `true`, `false` and `null`. Data
is built from PyYAML's stream of parsing events, so that no object is ever constructed, no alias is ever
expanded, and a limit stops the reading at once.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from lora_lab.common.errors import InputError, StudyFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

KeyPath = tuple[str | int, ...]
"""The way to a value: keys of mappings, and positions in lists from 0."""

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_VALUES = 2_000

# libyaml is some thirty times faster; only its events are used, so the choice makes no other difference.
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"([-+]?)0+([0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?)")
_NOT_DECIMAL = re.compile(r"[-+]?(0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|[0-9]+_[0-9_]*(\.[0-9_]*)?)")
_NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class YamlSource:
    """The content of a file (or argument), and where each part of it stands."""

    name: str
    """As messages show it: the path that the user gave."""
    data: Any
    lines: Mapping[KeyPath, int]
    """Line (from 1) of every key and list item; `()` is where the content begins."""


def format_key_path(path: KeyPath) -> str:
    """A key path as text: `sweep.parameters.r.values[2]`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{_word(part)}"
    return text.removeprefix(".")


def _word(text: str, limit: int = 80) -> str:
    return text if text.isprintable() and 0 < len(text) <= limit else repr(text[:limit])


def read_yaml(path: Path, shown_as: str | None = None) -> YamlSource:
    """Read a YAML file; messages call it `shown_as` (by default its path).

    Raises:
        InputError: the file is not there, is not a file, or cannot be read.
        StudyFileError: the content is no YAML, or not of the allowed subset; names file, line and key path.
    """
    name = _word(str(path), 400) if shown_as is None else shown_as
    content = _read_bytes(path, name)
    if len(content) > MAX_BYTES:
        raise StudyFileError(name, None, "", f"is larger than {MAX_BYTES} bytes; this cannot be a study file")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        problem = f"is not UTF-8 text (byte 0x{content[error.start]:02x}); save the file as UTF-8"
        raise StudyFileError(name, line, "", problem) from None
    return parse_yaml(text, name)


def _read_bytes(path: Path, name: str) -> bytes:
    try:
        if path.is_dir():
            raise InputError(f"{name} is a folder; give the path of a YAML file in it")
        if not path.exists():
            raise InputError(f"{name}: no such file{_known_files(path)}")
        if not path.is_file():
            raise InputError(f"{name} is not a regular file; give the path of a YAML file")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{name} cannot be read ({reason}); check the path and its permissions") from None


def _known_files(path: Path) -> str:
    if not path.parent.is_dir():
        return ", nor its folder; check the path"
    files = sorted(file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml"))
    return f"; its folder has {', '.join(files[:12])}" if files else "; its folder has no YAML file"


def parse_yaml(text: str, name: str) -> YamlSource:
    """Read YAML from text; `name` is what messages call it.

    Raises:
        StudyFileError: as `read_yaml`.
    """
    control = _CONTROL.search(text)
    if control is not None:
        line = text.count("\n", 0, control.start()) + 1
        problem = f"the control character {control.group()!r} is not allowed; remove it"
        raise StudyFileError(name, line, "", problem)
    return _Reader(text, name).read()


def plain_value(text: str) -> Any:
    """The value of an unquoted scalar.

    Raises:
        ValueError: a spelling that YAML loaders read in different ways, or a number that is not finite.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INTEGER.fullmatch(text):
        return _integer(text)
    if _FLOAT.fullmatch(text):
        return _finite(text)
    _refuse_ambiguous_number(text)
    return text


def _integer(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"a whole number must fit into 64 bits, but got {text[:40]}; write text in quotes")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large for a number; for text, write '{text[:40]}'")
    return value


def _refuse_ambiguous_number(text: str) -> None:
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"numbers must be finite, but got {text}")
    zeros = _LEADING_ZERO.fullmatch(text)
    if zeros is not None:
        decimal = f"{zeros.group(1)}{zeros.group(2)}"[:40]
        raise ValueError(
            f"{text[:40]} is octal to some YAML loaders and decimal to others; write {decimal} or '{text[:40]}'"
        )
    if _NOT_DECIMAL.fullmatch(text):
        raise ValueError(
            f"{text[:40]} is a number to some YAML loaders and text to others; "
            f"write it in plain decimal digits, or '{text[:40]}' for text"
        )


class _Reader:
    """Builds the data of one document from parsing events."""

    def __init__(self, text: str, name: str) -> None:
        self._text, self._name = text, name
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._path: KeyPath = ()
        self._lines: dict[KeyPath, int] = {}
        self._values = 0

    def read(self) -> YamlSource:
        data = None
        self._next()
        event = self._next()
        if isinstance(event, yaml.DocumentStartEvent):
            if event.version is not None or event.tags:
                self._refuse(event, "YAML directives (% lines) are not allowed; remove the line")
            first = self._next()
            self._lines[()] = _line(first)
            data = self._node(first)
            self._next()
            event = self._next()
        if isinstance(event, yaml.DocumentStartEvent):
            self._refuse(event, "more than one document; remove `---` and what follows, or split the file")
        return YamlSource(self._name, data, self._lines)

    def _next(self) -> yaml.Event:
        try:
            return next(self._events)
        except yaml.MarkedYAMLError as error:
            self._refuse_syntax(error)
        except yaml.YAMLError as error:
            problem = f"not valid YAML: {' '.join(str(error).split())}"
            raise StudyFileError(self._name, None, format_key_path(self._path), problem) from None

    def _refuse(self, event: yaml.Event, problem: str) -> NoReturn:
        raise StudyFileError(self._name, _line(event), format_key_path(self._path), problem)

    def _refuse_syntax(self, error: yaml.MarkedYAMLError) -> NoReturn:
        mark, start = error.problem_mark or error.context_mark, error.context_mark
        if start is not None and mark is not None and mark.index >= len(self._text):
            mark = start  # it is the end of the file that is wrong: say what was never closed
        line = None if mark is None else mark.line + 1
        problem = " ".join((error.problem or "unreadable").split())
        if error.context:
            begins = f" that begins on line {start.line + 1}" if start and start.line + 1 != line else ""
            problem = f"{error.context}{begins}: {problem}"
        problem = f"not valid YAML: {problem}{self._syntax_hint(mark, problem)}"
        raise StudyFileError(self._name, line, format_key_path(self._path), problem) from None

    def _syntax_hint(self, mark: Any, problem: str) -> str:
        lines = self._text.splitlines()
        if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line][: mark.column + 1]:
            return " (tabs cannot indent; use spaces)"
        return " (text that holds ': ' needs quotes)" if problem.startswith("mapping values") else ""

    def _node(self, event: yaml.Event) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            self._refuse(event, f"more than {MAX_VALUES} values; this cannot be a study file")
        if len(self._path) > MAX_DEPTH:
            self._refuse(event, f"nested more than {MAX_DEPTH} levels deep; this cannot be a study file")
        self._refuse_features(event)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping()
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence()
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        raise AssertionError(event)

    def _refuse_features(self, event: yaml.Event) -> None:
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent):
            self._refuse(event, f"aliases (*{anchor}) are not allowed; write the value out, or quote the text")
        if anchor is not None:
            self._refuse(event, f"anchors (&{anchor[:60]}) are not allowed; remove it, or quote the text")
        if tag is not None:
            self._refuse(event, f"tags ({tag[:60]}) are not allowed; remove it, or quote the text")

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        control = _CONTROL.search(event.value)
        if control is not None:
            problem = f"text must not hold the control character {control.group()!r}; remove the escape"
            self._refuse(event, problem)
        unquoted = bool(event.implicit[0])
        if not unquoted:
            return event.value
        try:
            return plain_value(event.value)
        except ValueError as error:
            self._refuse(event, str(error))

    def _sequence(self) -> list[Any]:
        items: list[Any] = []
        outer = self._path
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            self._path = (*outer, len(items))
            self._lines[self._path] = _line(event)
            items.append(self._node(event))
            self._path = outer
        return items

    def _mapping(self) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        outer = self._path
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            key = self._key(event)
            self._path = (*outer, key)
            if key in mapping:
                self._refuse(event, f"duplicate key; it stands on line {self._lines[self._path]} already")
            self._lines[self._path] = _line(event)
            mapping[key] = self._node(self._next())
            self._path = outer
        return mapping

    def _key(self, event: yaml.Event) -> str:
        self._refuse_features(event)
        if not isinstance(event, yaml.ScalarEvent):
            self._refuse(event, "a key must be text, but is a list or a mapping")
        if event.value == "<<":
            self._refuse(event, "merge keys (<<) are not allowed; write the keys out")
        key = self._scalar(event)
        if not isinstance(key, str):
            self._refuse(event, f"a key must be text, but is {event.value or 'empty'}; write '{event.value}'")
        return key


def _line(event: yaml.Event) -> int:
    return 1 if event.start_mark is None else int(event.start_mark.line) + 1
