"""Raw rows -> validated examples: text, prompt and completion, or a conversation.

The formats are those of TRL, and alpaca, which becomes prompt and completion. All rows are checked before
anything is trained, and none is dropped: one bad row refuses the dataset.
"""

from __future__ import annotations

import hashlib
import json
import reprlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lora_lab.common.errors import InputError
from lora_lab.data.readers import MAX_TEXT_CHARS, RawRow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

Format = Literal["messages", "prompt_completion", "alpaca", "text"]

COLUMNS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
    "text": ("text",),
}
"""The columns that make a format; where several fit, the first one here is taken."""

ACCEPTED = "`messages`; `prompt` and `completion`; `instruction`, `output` and optionally `input`; `text`"

ALPACA_PROMPT = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""As in the `text` column of the Hub's tatsu-lab/alpaca."""

MAX_LISTED = 5
MAX_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Text:
    """Text that is learned from its first to its last token."""

    text: str
    place: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """A prompt, which is given, and a completion, which is learned."""

    prompt: str
    completion: str
    place: str = field(compare=False)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages as (role, content), of which the assistant's are learned."""

    messages: tuple[tuple[str, str], ...]
    place: str = field(compare=False)


Example = Text | Completion | Conversation
"""Examples are equal when their content is, wherever they come from."""


class BadField(Exception):  # noqa: N818 - never leaves this module; it becomes a line of an InputError
    """A field of a row that cannot be right."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")


def validate(rows: Sequence[RawRow], source: str) -> tuple[tuple[Example, ...], tuple[str, ...]]:
    """The examples of all rows, and notes on how the columns were read.

    Raises InputError for no rows, for columns of no known format, and for bad rows: the first five, one per
    line, and how many in all.
    """
    if not rows:
        raise InputError(f"{source}: has no rows; a dataset needs at least one")
    readable = [row for row in rows if not row.damage]
    row_format, notes = _detect_format(readable, source) if readable else ("text", ())
    convert = _CONVERTERS[row_format]
    examples: list[Example] = []
    problems: list[str] = []
    for row in rows:
        try:
            if row.damage:
                problems.append(f"{row.place}: {row.damage}")
            else:
                examples.append(convert(row))
        except BadField as error:
            problems.append(f"{row.place}: {error}")
    raise_problems(problems, len(rows))
    return tuple(examples), notes


def raise_problems(problems: Sequence[str], rows: int) -> None:
    """Raise an InputError if there are bad rows: the first five, one per line, and how many in all."""
    if not problems:
        return
    lines = list(problems[:MAX_LISTED])
    if len(problems) > MAX_LISTED:
        lines.append(f"{len(problems)} of {rows} rows are bad; the first {MAX_LISTED} are listed")
    raise InputError("\n".join(lines))


def content_hash(examples: Iterable[Example]) -> str:
    """The sha256 of what the examples say, whatever file they come from."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(_content(example)).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _content(example: Example) -> dict[str, Any]:
    match example:
        case Text():
            return {"text": example.text}
        case Completion():
            return {"prompt": example.prompt, "completion": example.completion}
        case Conversation():
            return {"messages": example.messages}


def _detect_format(rows: Sequence[RawRow], source: str) -> tuple[Format, tuple[str, ...]]:
    def share(row_format: Format) -> float:
        columns = COLUMNS[row_format]
        return sum(all(row.fields.get(name) is not None for name in columns) for row in rows) / len(rows)

    # What half of the rows have is what is meant, so that a few bad rows do not turn alpaca into text.
    fitting = [row_format for row_format in COLUMNS if share(row_format) >= 0.5] or [max(COLUMNS, key=share)]
    if share(fitting[0]) == 0:
        found = ", ".join(dict.fromkeys(str(name) for row in rows for name in row.fields))
        raise InputError(
            f"{source}: columns of a known format are needed ({ACCEPTED}), but found "
            f"{_cut(found) or 'none'}; rename the columns"
        )
    if len(fitting) == 1:
        return fitting[0], ()
    taken, *others = ["/".join(COLUMNS[row_format]) for row_format in fitting]
    return fitting[0], (f"{source}: the columns {taken} are used; {' and '.join(others)} would fit too",)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else f"{text[:MAX_SHOWN_CHARS]}..."


_SHORT = reprlib.Repr()
_SHORT.maxstring = MAX_SHOWN_CHARS


def _shown(value: Any) -> str:
    return _cut(_SHORT.repr(value))


def _string(fields: Mapping[str, Any], key: str, name: str, *, may_be_empty: bool = False) -> str:
    """The text in `fields[key]`; `name` is what the field is called in an error."""
    value = fields.get(key)
    if value is None:
        raise BadField(name, f"{'is null' if key in fields else 'is missing'}; add a text, or delete the row")
    if not isinstance(value, str):
        raise BadField(name, f"must be a string, but is {_shown(value)} ({type(value).__name__}); correct the row")
    if not may_be_empty and not value.strip():
        raise BadField(name, f"must not be empty, but is {_shown(value)}; write a text, or delete the row")
    if len(value) > MAX_TEXT_CHARS:
        raise BadField(
            name,
            f"has {len(value):,} characters, at most {MAX_TEXT_CHARS:,} are allowed ({_shown(value)}); "
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


def _to_text(row: RawRow) -> Example:
    return Text(_string(row.fields, "text", "text"), place=row.place)


def _to_completion(row: RawRow) -> Example:
    return Completion(
        prompt=_string(row.fields, "prompt", "prompt", may_be_empty=True),
        completion=_string(row.fields, "completion", "completion"),
        place=row.place,
    )


def _alpaca_to_completion(row: RawRow) -> Example:
    instruction = _string(row.fields, "instruction", "instruction")
    context = "" if row.fields.get("input") is None else _string(row.fields, "input", "input", may_be_empty=True)
    template = ALPACA_PROMPT_WITH_INPUT if context else ALPACA_PROMPT
    return Completion(
        prompt=template.format(instruction=instruction, input=context),
        completion=_string(row.fields, "output", "output"),
        place=row.place,
    )


def _to_conversation(row: RawRow) -> Example:
    messages = row.fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadField(
            "messages",
            f'must be a list of {{"role": ..., "content": ...}}, but is {_shown(messages)}; correct the row',
        )
    turns = tuple(_to_turn(message, f"messages[{index}]") for index, message in enumerate(messages))
    if not any(role == "assistant" for role, _ in turns):
        roles = ", ".join(role for role, _ in turns)
        raise BadField(
            "messages", f"needs a message of the role assistant to learn from, but has {_cut(roles)}; add it"
        )
    return Conversation(turns, place=row.place)


def _to_turn(message: Any, name: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise BadField(name, f'must be {{"role": ..., "content": ...}}, but is {_shown(message)}; correct the row')
    unknown = [key for key in message if key not in ("role", "content") and message[key] is not None]
    if unknown:
        # tool_calls, name, ...: leaving them out would train on something else than what the row says.
        raise BadField(name, f"only role and content can be trained on, but it has {_shown(unknown[0])}; remove it")
    role = _string(message, "role", f"{name}.role")
    return role, _string(message, "content", f"{name}.content", may_be_empty=role != "assistant")


_CONVERTERS: dict[Format, Callable[[RawRow], Example]] = {
    "messages": _to_conversation,
    "prompt_completion": _to_completion,
    "alpaca": _alpaca_to_completion,
    "text": _to_text,
}
