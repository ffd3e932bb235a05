"""A study before validation: plain data, and for every part of it the place that a message names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_lab.common.errors import StudyFileError
from lora_lab.study.file.yaml_source import KeyPath, YamlSource, format_key_path, parse_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_lab.study.file.problems import Problem

COMMAND_LINE = "--set"
MAX_SHOWN = 20
_DATASETS = {("data", "train"), ("data", "eval"), ("data", "test"), ("data", "forgetting")}


class Place(NamedTuple):
    """Where a part of a study was written."""

    source: str
    line: int | None
    root: int = 0
    """How many leading keys of the path the source itself does not have (1 in a sweep file)."""


@dataclass(slots=True)
class Draft:
    """Data of a study that is put together from a study file, a sweep file and `--set` arguments."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)

    def include(self, at: KeyPath, source: YamlSource) -> None:
        """Put the content of a file at a key path, in place of what is there."""
        self._forget(at)
        if at:
            self._parent_of(at)[at[-1]] = source.data
        else:
            self.data = source.data
        for path, line in source.lines.items():
            self.places[(*at, *path)] = Place(source.name, line, len(at))

    def set(self, at: KeyPath, value: Any) -> None:
        """Put a value from the command line at a key path; None removes the key."""
        if value is None and not self._has(at):
            return
        parent = self._parent_of(at)
        self._forget(at)
        if value is None:
            del parent[at[-1]]
        else:
            parent[at[-1]] = value
            self.places[at] = Place(COMMAND_LINE, None)

    def error(self, path: KeyPath, problem: str) -> StudyFileError:
        """The error for a problem at a key path, with the nearest place that is known."""
        return self._error(self._place(path), path, problem)

    def errors(self, problems: Iterable[Problem]) -> StudyFileError:
        """One error for one or more problems, in the order of the files, one line for each."""
        placed = sorted(
            ((self._place(problem.path), problem) for problem in dict.fromkeys(problems)),
            key=lambda one: (one[0].root, one[0].source, one[0].line or 0),
        )
        errors = [self._error(place, problem.path, problem.text) for place, problem in placed]
        first, last = errors[0], ["... and more"] if len(errors) > MAX_SHOWN else []
        lines = [first.problem, *map(str, errors[1:MAX_SHOWN]), *last]
        return StudyFileError(first.source, first.line, first.key_path, "\n".join(lines))

    def _error(self, place: Place, path: KeyPath, problem: str) -> StudyFileError:
        return StudyFileError(place.source, place.line, format_key_path(path[place.root :]), problem)

    def _place(self, path: KeyPath) -> Place:
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        raise AssertionError(path)

    def _forget(self, at: KeyPath) -> None:
        self.places = {path: place for path, place in self.places.items() if path[: len(at)] != at}

    def _has(self, at: KeyPath) -> bool:
        inner: Any = self.data
        for key in at:
            if not isinstance(inner, dict) or key not in inner:
                return False
            inner = inner[key]
        return True

    def _parent_of(self, at: KeyPath) -> dict[str | int, Any]:
        parent: Any = self.data
        for depth, key in enumerate(at[:-1], start=1):
            inner = parent.setdefault(key, {})
            if isinstance(inner, str) and at[:depth] in _DATASETS:
                inner = parent[key] = {"path": inner}
            if not isinstance(inner, dict):
                whole = format_key_path(at[:depth])
                problem = f"{whole} has no keys of its own; set it as a whole: --set {whole}=..."
                raise StudyFileError(COMMAND_LINE, None, format_key_path(at), problem)
            parent = inner
        return parent  # type: ignore[no-any-return]


def parse_override(argument: str) -> tuple[KeyPath, Any]:
    """Key path and value of a `--set key.path=value` argument; the value follows the rules of the study file.

    Raises:
        StudyFileError: no such form, or a value that cannot be read.
    """
    key, equals, text = argument.partition("=")
    path: KeyPath = tuple(word.strip() for word in key.split("."))
    if not equals or not all(path):
        raise StudyFileError(COMMAND_LINE, None, "", f"takes key.path=value, but got {key.strip()[:80]!r}")
    if not text.strip():
        problem = "has no value; write null to remove the key, or '' for empty text"
        raise StudyFileError(COMMAND_LINE, None, format_key_path(path), problem)
    try:
        return path, parse_yaml(text, COMMAND_LINE).data
    except StudyFileError as error:
        inner = f"{error.key_path}: " if error.key_path else ""
        raise StudyFileError(COMMAND_LINE, None, format_key_path(path), f"{inner}{error.problem}") from None
