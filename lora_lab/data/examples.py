"""What a row says, validated: a text, a prompt and its completion, or a conversation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

Message = Mapping[str, Any]
"""A message as chat templates take it: `role`, `content`, and possibly `tool_calls` and other keys."""


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
    choices: tuple[str, ...] = ()
    """All that the completion is chosen from, itself included, where the row is multiple choice."""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The columns that the row was read from."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, of which the assistant's are learned unless they are `given`."""

    messages: tuple[Message, ...]
    place: str = field(compare=False)
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the functions that the assistant may call."""
    given: frozenset[int] = frozenset()
    """Indices of the assistant's messages that are not learned."""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The columns that the row was read from."""

    def __hash__(self) -> int:
        return hash(json.dumps(self.content(), sort_keys=True))

    def content(self) -> dict[str, Any]:
        """All that makes the conversation, as JSON has it."""
        if self.tools or self.given or any(message.keys() != {"role", "content"} for message in self.messages):
            return {"messages": self.messages, "tools": self.tools, "given": sorted(self.given)}
        # As it was written before messages could have more than these two keys: hashes of old studies stay.
        return {"messages": [[message["role"], message["content"]] for message in self.messages]}

    @property
    def learned(self) -> list[int]:
        """Indices of the messages that are learned."""
        return [
            index
            for index, message in enumerate(self.messages)
            if message["role"] == "assistant" and index not in self.given
        ]


@dataclass(frozen=True, slots=True)
class Labeled:
    """One text or two, and the class of the row, which is learned."""

    texts: tuple[str, ...]
    label: str
    place: str = field(compare=False)


Example = Text | Completion | Conversation | Labeled
"""Examples are equal when their content is, wherever they come from."""


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
            choices = {"choices": example.choices} if example.choices else {}
            return {"prompt": example.prompt, "completion": example.completion} | choices
        case Conversation():
            return example.content()
        case Labeled():
            return {"texts": example.texts, "label": example.label}
