"""Single fields of a row: what may stand in them, and how they are shown where it may not."""

from __future__ import annotations

import json
import reprlib
from typing import TYPE_CHECKING, Any

from lora_lab.data.bad_rows import BadField
from lora_lab.data.readers import MAX_TEXT_CHARS

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SHOWN_CHARS = 80

_SHORT = reprlib.Repr()
_SHORT.maxstring = MAX_SHOWN_CHARS


def cut(text: str) -> str:
    """The beginning of a text, short enough for a message."""
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


def shown(value: Any) -> str:
    """Any value, short enough for a message."""
    return cut(_SHORT.repr(value))


def string(fields: Mapping[str, Any], key: str, name: str, *, may_be_empty: bool = False) -> str:
    """The text in `fields[key]`; `name` is what the field is called in an error.

    Raises:
        BadField: no text, an empty one, one that is too long, or one that no tokenizer takes.
    """
    value = fields.get(key)
    if value is None:
        raise BadField(name, f"{'is null' if key in fields else 'is missing'}; add a text, or delete the row")
    if not isinstance(value, str):
        raise BadField(name, f"must be a string, but is {shown(value)} ({type(value).__name__}); correct the row")
    if not may_be_empty and not value.strip():
        raise BadField(name, f"must not be empty, but is {shown(value)}; write a text, or delete the row")
    if len(value) > MAX_TEXT_CHARS:
        raise BadField(
            name,
            f"has {len(value):,} characters, at most {MAX_TEXT_CHARS:,} are allowed ({shown(value)}); "
            "split it into rows",
        )
    if "\0" in value:
        raise BadField(name, f"holds a NUL character at position {value.index(chr(0)) + 1}; remove it")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which no tokenizer takes.
        character = ascii(value[error.start])
        raise BadField(
            name, f"character {error.start + 1}, {character}, is not valid Unicode; correct or remove it"
        ) from None
    return value


def from_json(value: Any) -> Any:
    """What a string of a JSON list or object holds (CSV has no other lists); any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
