"""Pydantic's errors about a study, in the words of the study file.

Pydantic places an error by its own path, with the names of union members and converters in it, and reports a
value that fits no member of a union once for each of them. Here the path leads through the file's own keys,
and there is one problem for one mistake.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from pydantic import BaseModel

from lora_lab.common.secrets import redact, shown
from lora_lab.study.section import RuleError
from lora_lab.study.spec import StudySpec
from lora_lab.study.sweep import OTHER_NAMES, SEARCHABLE

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from pydantic_core import ErrorDetails

    from lora_lab.study.file.yaml_source import KeyPath

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
}
_EXPECTED_OF_CLASS = {
    "DatasetRef": "the name of a dataset",
    "Parameter": "{values: [...]} or {min: ..., max: ...}",
}
_MAX_ERRORS = 100
"""Of pydantic's; more make no better message, and each costs time."""
_LIMITS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
_FIXED_TEXTS = {
    "missing": "is missing; add this key",
    "model_type": "is empty; give its keys, or remove the line",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
}


class Problem(NamedTuple):
    """One mistake: where it is in the data, and what is wrong, without the place."""

    path: KeyPath
    text: str


@dataclass(frozen=True, slots=True)
class _Placed:
    """A pydantic error, its path through the data, and where and for which member a union was entered."""

    error: ErrorDetails
    path: KeyPath
    fork: KeyPath
    member: str | int | None

    @property
    def is_about_shape(self) -> bool:
        """Whether it only says that the value is not of this member's type."""
        kind, value = self.error["type"], self.error["input"]
        return kind == "literal_error" or kind in _EXPECTED or (kind == "model_type" and value is not None)


def did_you_mean(word: object, known: Collection[str]) -> str:
    """The hint `; did you mean ...?`, or nothing where no known word is close."""
    close = difflib.get_close_matches(str(word)[:80], list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def problems(errors: Iterable[ErrorDetails], data: Any) -> list[Problem]:
    """One problem for every mistake that pydantic found in `data` (plain data, as it was read)."""
    placed = [_place(error, data) for error in islice(errors, _MAX_ERRORS)]
    placed.sort(key=lambda one: repr(one.fork))
    chosen = [one for _, group in groupby(placed, key=lambda one: one.fork) for one in _meant(list(group))]
    chosen.sort(key=lambda one: repr(one.path))
    found = []
    for path, group in groupby(chosen, key=lambda one: one.path):
        found.extend(_describe(path, list(group), _value_at(data, path)))
    return found


def _place(error: ErrorDetails, data: Any) -> _Placed:
    path: KeyPath = ()
    fork: KeyPath | None = None
    member: str | int | None = None
    for part in error["loc"]:
        if _has(data, part):
            data, path = data[part], (*path, part)
        elif fork is None:
            fork, member = path, part
    if error["type"] == "missing":
        path = (*path, error["loc"][-1])
        fork = path if member == error["loc"][-1] else fork
    rule = error.get("ctx", {}).get("error")
    if isinstance(rule, RuleError):
        path = (*path, *rule.key)
    return _Placed(error, path, path if fork is None else fork, member)


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, dict):
        return part in data
    return isinstance(data, list) and isinstance(part, int) and part < len(data)


def _value_at(data: Any, path: KeyPath) -> Any:
    for part in path:
        data = data[part] if _has(data, part) else None
    return data


def _meant(errors: list[_Placed]) -> list[_Placed]:
    """The errors of the union's member that was meant, which is the one whose type the value has."""
    meant = {one.member for one in errors if not one.is_about_shape or len(one.path) > len(one.fork)}
    return [one for one in errors if one.member in meant] if meant else errors


def _describe(path: KeyPath, errors: Sequence[_Placed], value: Any) -> list[Problem]:
    shape = [one.error for one in errors if one.is_about_shape]
    texts = [_text(one.error, path, value) for one in errors if not one.is_about_shape]
    if shape:
        texts.append(_shape_text(shape, value))
    return [Problem(path, text) for text in dict.fromkeys(texts)]


def _shape_text(errors: Sequence[ErrorDetails], value: Any) -> str:
    choices = [choice for error in errors for choice in _choices(error)]
    expected = list(dict.fromkeys(_expectation(error) for error in errors))
    if "a number" in expected and "a whole number" in expected:
        expected.remove("a whole number")
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    return f"must be {' or '.join(expected)}, but is {shown(value)}{hint or _type_hint(expected, value)}"


def _choices(error: ErrorDetails) -> list[str]:
    return re.findall(r"'([^']*)'", error["ctx"]["expected"]) if error["type"] == "literal_error" else []


def _expectation(error: ErrorDetails) -> str:
    choices = _choices(error)
    if choices:
        return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    if error["type"] == "model_type":
        return _EXPECTED_OF_CLASS.get(error["ctx"]["class_name"], "a mapping of keys")
    return _EXPECTED[error["type"]]


def _type_hint(expected: Collection[str], value: Any) -> str:
    if isinstance(value, str):
        if "true or false" in expected and value.lower() in ("yes", "on", "no", "off"):
            return f"; write {'true' if value.lower() in ('yes', 'on') else 'false'}"
        if "true or false" in expected and value.lower() in ("true", "false"):
            return "; write it without quotes"
        number = any(word.endswith("number") for word in expected)
        return "; write it without quotes" if number and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", value) else ""
    if isinstance(value, float) and value.is_integer() and "a whole number" in expected:
        return f"; write {int(value)}"
    if isinstance(value, (bool, int, float)) and "text" in expected:
        return "; write it in quotes"
    return ""


def _text(error: ErrorDetails, path: KeyPath, value: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _LIMITS:
        words, limit = _LIMITS[kind]
        return f"must be {words} {context[limit]:g}, but is {shown(value)}"
    if kind in _FIXED_TEXTS:
        return _FIXED_TEXTS[kind]
    if kind == "extra_forbidden":
        return _unknown_key(path)
    if kind == "value_error":
        return redact(str(context["error"]))
    return f"{redact(error['msg'])}, but is {shown(value)}"


def _unknown_key(path: KeyPath) -> str:
    key, known = str(path[-1]), list(_model_at(path[:-1]).model_fields)
    name = OTHER_NAMES.get(key, key)
    if name in known:
        return f"unknown key; did you mean {name}?"
    if name in SEARCHABLE:
        return f"unknown key here; did you mean {SEARCHABLE[name]}.{name}?"
    return "unknown key" + (did_you_mean(key, known) or f"; the keys here are {', '.join(known)}")


def _model_at(path: KeyPath) -> type[BaseModel]:
    model: type[BaseModel] = StudySpec
    for part in path:
        field = model.model_fields.get(str(part))
        model = (_model_in(field.annotation) if field else None) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
