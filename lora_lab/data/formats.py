"""Raw rows -> validated examples, by the columns that they have.

The formats are those of TRL, ShareGPT, alpaca, and common datasets of multiple choice. All rows are checked before
anything is trained; what is not read is named.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from lora_lab.common.errors import InputError
from lora_lab.data import alpaca
from lora_lab.data.bad_rows import BadField, BadRows
from lora_lab.data.choices import FORMATS as CHOICES
from lora_lab.data.choices import ChoiceFormat
from lora_lab.data.classes import text_columns, to_labeled
from lora_lab.data.conversations import is_list_of_messages, to_conversation, to_prompted_conversation
from lora_lab.data.examples import Completion, Conversation, Example, Text
from lora_lab.data.fields import cut, string

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_lab.data.readers import RawRow

Format = Literal["messages", "sharegpt", "prompt_completion", "alpaca", "text", "labeled"] | ChoiceFormat

COLUMNS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
    **{name: columns.names for name, columns in CHOICES.items()},
    "labeled": ("text", "label"),
}
"""The columns that make a format; where several fit, the first one here is taken. `labeled` is that of classification,
which has no other one."""

OPTIONAL: dict[Format, tuple[str, ...]] = {
    "messages": ("system", "tools"),
    "sharegpt": ("system", "tools"),
    "prompt_completion": ("tools",),
    "alpaca": ("input", "system", "history"),
    "labeled": ("text_pair",),
}
"""Columns that are read beside these."""

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
"""Columns that belong to the text of a row and cannot be trained on."""

ACCEPTED = (
    "`messages`; `conversations`; `prompt` and `completion`; `instruction`, `output` and optionally `input`, `system` "
    "and `history`; `text`; `prompt` or `question`, `choices` and `answer`"
)
ACCEPTED_LABELED = "`text` or `sentence`, or a pair such as `sentence1` and `sentence2`; and `label`"


def validate(
    rows: Sequence[RawRow],
    source: str,
    bad: BadRows,
    columns: Mapping[str, str] | None = None,
    *,
    labeled: bool = False,
) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """The examples of all good rows, and notes on how the columns were read; the others go into `bad`.

    Args:
        rows: At least one.
        source: Where they come from, for messages.
        bad: Takes the bad rows.
        columns: Under which names (values) the columns (keys) of a format stand here.
        labeled: Whether rows are read with their classes, or as text.

    Raises:
        InputError: no rows, columns of no known format, or `columns` that are not there.
    """
    if not rows:
        raise InputError(f"{source}: has no rows; a dataset needs at least one")
    bad.rows += len(rows)
    found = [row for row in rows if not row.damage]
    if labeled:
        columns = text_columns(_names(found), columns or {}) | dict(columns or {})
    readable = _renamed(found, columns, source) if columns and found else found
    for row in rows:
        if row.damage:
            bad.add(row.place, row.damage)
    if not readable:
        return (), ()
    fitting = _fitting_formats(readable, source, columns or {}, labeled=labeled)
    convert = _CONVERTERS[fitting[0]]
    examples: list[Example] = []
    for row in readable:
        try:
            if fitting[0] != "text":
                _refuse_media(row)
            example = convert(row)
            examples.append(
                replace(example, row=row.fields) if isinstance(example, (Completion, Conversation)) else example
            )
        except BadField as error:
            bad.add(row.place, error)
    return tuple(examples), (*_other_formats(fitting, source), *_unread(found, fitting, source, columns or {}))


def _renamed(rows: Sequence[RawRow], columns: Mapping[str, str], source: str) -> list[RawRow]:
    names = _names(rows)
    for ours, theirs in columns.items():
        if theirs not in names:
            raise InputError(
                f"{source}: columns.{ours} must name a column, but there is no {theirs!r} among "
                f"{cut(', '.join(names)) or 'none'}; correct it"
            )
    taken = set(columns.values())
    return [replace(row, fields=_with_our_names(row.fields, columns, taken)) for row in rows]


def _with_our_names(fields: Mapping[str, Any], columns: Mapping[str, str], taken: set[str]) -> dict[str, Any]:
    rest = {name: value for name, value in fields.items() if name not in taken and name not in columns}
    return rest | {ours: fields[theirs] for ours, theirs in columns.items() if theirs in fields}


def _names(rows: Sequence[RawRow]) -> list[str]:
    return list(dict.fromkeys(str(name) for row in rows for name in row.fields))


def _fitting_formats(rows: Sequence[RawRow], source: str, columns: Mapping[str, str], *, labeled: bool) -> list[Format]:
    """The format to read, and the others that would fit."""

    def share(row_format: Format) -> float:
        names = COLUMNS[row_format]
        return sum(all(row.fields.get(name) is not None for name in names) for row in rows) / len(rows)

    # A renamed column is meant to be read.
    possible = [
        one
        for one in COLUMNS
        if (one == "labeled") == labeled
        and (not columns or not columns.keys().isdisjoint((*COLUMNS[one], *OPTIONAL.get(one, ()))))
    ]
    # What half of the rows have is what is meant, so that a few bad rows do not turn alpaca into text.
    fitting = [row_format for row_format in possible if share(row_format) >= 0.5] or [max(possible, key=share)]
    if share(fitting[0]) == 0:
        raise InputError(
            f"{source}: columns of a known format are needed ({ACCEPTED_LABELED if labeled else ACCEPTED}), but found "
            f"{cut(', '.join(_names(rows))) or 'none'}; rename the columns, or say with data.columns what they are"
        )
    return fitting


def _other_formats(fitting: Sequence[Format], source: str) -> tuple[str, ...]:
    if len(fitting) == 1:
        return ()
    taken, *others = ["/".join(COLUMNS[row_format]) for row_format in fitting]
    return (f"{source}: the columns {taken} are used; {' and '.join(others)} would fit too",)


def _unread(
    rows: Sequence[RawRow], fitting: Sequence[Format], source: str, columns: Mapping[str, str]
) -> tuple[str, ...]:
    """A note on the columns that hold something and are not read, those of the other fitting formats apart."""
    named = {name for row_format in fitting for name in COLUMNS[row_format]} | set(OPTIONAL.get(fitting[0], ()))
    read = named - columns.keys() | set(columns.values())
    filled = dict.fromkeys(
        str(name) for row in rows for name, value in row.fields.items() if value not in (None, "", [], {})
    )
    unread = [name or "(without a name)" for name in filled if name not in read]
    if not unread:
        return ()
    one = len(unread) == 1
    return (f"{source}: the column{'' if one else 's'} {', '.join(unread)[:400]} {'is' if one else 'are'} not read",)


def _refuse_media(row: RawRow) -> None:
    for name in MEDIA:
        if row.fields.get(name):
            raise BadField(name, "only text can be trained on; remove the column, or delete the row")


def _to_text(row: RawRow) -> Example:
    return Text(string(row.fields, "text", "text"), place=row.place)


def _to_completion(row: RawRow) -> Example:
    if is_list_of_messages(row.fields.get("prompt")) and is_list_of_messages(row.fields.get("completion")):
        return to_prompted_conversation(row)
    if row.fields.get("tools"):
        raise BadField("tools", "need a prompt and a completion of messages, but these are texts; remove the column")
    return Completion(
        prompt=string(row.fields, "prompt", "prompt", may_be_empty=True),
        completion=string(row.fields, "completion", "completion"),
        place=row.place,
    )


_CONVERTERS: dict[Format, Callable[[RawRow], Example]] = {
    "messages": lambda row: to_conversation(row, "messages"),
    "sharegpt": lambda row: to_conversation(row, "conversations"),
    "prompt_completion": _to_completion,
    "alpaca": alpaca.to_completion,
    "text": _to_text,
    **{name: columns.to_completion for name, columns in CHOICES.items()},
    "labeled": to_labeled,
}
