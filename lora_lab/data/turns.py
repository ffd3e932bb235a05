"""Where the assistant speaks in what a chat template writes, for templates that do not mark it themselves.

A turn of the assistant is what it adds to the generation prompt: its header is given, its end is learned. Three
kinds of template need more than a comparison of prefixes: those that put a system prompt before a conversation
without one, those that drop the thinking of earlier turns, and those whose generation prompt says more than the
header of a turn. There the turn is found by saying something else in its place and looking at what stays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from jinja2 import TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.data.examples import Message

STAND_IN = "\ue0b7stand-in\ue0b8"
"""A text that no row and no template holds (private-use characters), without spaces that a template might trim."""
STAND_IN_BEFORE = "\ue0b9before\ue0ba"

TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What a template raises for messages that it does not expect; the others come from expressions in it."""

Span = tuple[int, int]


class Render(Protocol):
    """A chat template of certain tools: messages -> text."""

    def __call__(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The text of a conversation, with what makes the assistant speak where `generation_prompt` asks for it."""


class TurnFinder:
    """Finds turns of the assistant in one rendered conversation."""

    def __init__(
        self, render: Render, messages: Sequence[Message], whole: str, shared_tokens: Callable[[str, str], int]
    ) -> None:
        """`whole`: all messages rendered; `shared_tokens`: characters in the tokens that two texts begin with."""
        self._render = render
        self._messages = list(messages)
        self._whole = whole
        self._shared_tokens = shared_tokens

    def find(self, index: int) -> Span | None:
        """First character and end of the turn of message `index`; None where it cannot be told from the rest."""
        return self._by_prefix(index) or self._by_stand_in(index)

    def _by_prefix(self, index: int) -> Span | None:
        if index == 0:
            return None  # templates take no empty conversation, and may begin with a system prompt of their own
        before = self._try(self._messages[:index], generation_prompt=True)
        after = self._try(self._messages[: index + 1])
        if before is None or after is None or not (after.startswith(before) and self._whole.startswith(after)):
            return None
        return len(before), len(after)

    def _by_stand_in(self, index: int) -> Span | None:
        role = self._messages[index]["role"]
        same = dict(self._messages[index]) | {"content": STAND_IN}
        for message in (same, {"role": role, "content": STAND_IN}):  # some templates write tool calls or a text
            span = self._stood_in(index, message)
            if span is not None:
                return span
        return None

    def _stood_in(self, index: int, message: Message) -> Span | None:
        text = self._try(self._with({index: message}))
        if text is None or text.count(STAND_IN) != 1:
            return None
        start = text.index(STAND_IN)
        end = start + len(STAND_IN)
        ending = self._learned_after(index, message, text[end:])
        if ending is None:
            return None
        start -= self._learned_before(index, message, text[:start])
        end += ending
        rest = text[end:]
        stop = len(self._whole) - len(rest)
        if start < stop and self._whole[:start] == text[:start] and self._whole[stop:] == rest:
            return start, stop
        return None

    def _learned_before(self, index: int, message: Message, before: str) -> int:
        """Characters between the header of the turn and its text, such as an empty block of thinking."""
        prompt = self._generation_prompt(index)
        at = -1
        if index:
            # Between the texts of two messages there are the end of the first and the header of the second.
            neighbor = dict(self._messages[index - 1]) | {"content": STAND_IN_BEFORE}
            text = self._try(self._with({index - 1: neighbor, index: message})) or ""
            start, end = text.find(STAND_IN_BEFORE), text.find(STAND_IN)
            if 0 <= start < end:
                before = text[start + len(STAND_IN_BEFORE) : end]
                at = before.find(prompt)
                ended = self._ending([*self._messages[: index - 1], neighbor], STAND_IN_BEFORE)
                if not prompt and ended is not None and before.startswith(ended):
                    return len(before) - len(ended)
        for length in range(len(prompt), 0, -1):
            at = before.rfind(prompt[:length]) if at < 0 else at
            if at >= 0:
                return len(before) - at - length
        return 0

    def _learned_after(self, index: int, message: Message, after: str) -> int | None:
        """Characters of the turn after its text: what ends it; None where that cannot be told."""
        ending = self._ending([*self._messages[:index], message], STAND_IN)
        if ending is not None and after.startswith(ending):
            return len(ending)
        # The last turn ends in another way than the others: take what stands before the header of the next message.
        if index + 1 < len(self._messages):
            neighbor = dict(self._messages[index + 1]) | {"content": STAND_IN_BEFORE}
            text = self._try(self._with({index: message, index + 1: neighbor})) or ""
            between = text.partition(STAND_IN)[2].partition(STAND_IN_BEFORE)[0]
            header = self._header(index, neighbor)
            if header and between.endswith(header):
                return len(between) - len(header)
        return None if ending is None else self._shared_tokens(ending, after)

    def _ending(self, messages: Sequence[Message], stand_in: str) -> str | None:
        """What a conversation ends with after the text of its last message."""
        text = self._try(messages)
        return None if text is None or stand_in not in text else text.partition(stand_in)[2]

    def _header(self, index: int, neighbor: Message) -> str:
        """What a template writes before the text of a message that follows those before `index`."""
        messages = self._messages[:index] or [{"role": "user", "content": "a"}]
        before, text = self._try(messages), self._try([*messages, neighbor])
        if before is None or text is None or not text.startswith(before):
            return ""
        return text[len(before) :].partition(STAND_IN_BEFORE)[0]

    def _generation_prompt(self, index: int) -> str:
        messages = self._messages[:index] or [{"role": "user", "content": STAND_IN_BEFORE}]
        without, prompted = self._try(messages), self._try(messages, generation_prompt=True)
        if without is None or prompted is None or not prompted.startswith(without):
            return ""
        return prompted[len(without) :]

    def _with(self, replaced: dict[int, Any]) -> list[Message]:
        return [replaced.get(index, message) for index, message in enumerate(self._messages)]

    def _try(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str | None:
        try:
            return self._render(messages, generation_prompt=generation_prompt)
        except TEMPLATE_ERRORS:
            return None
