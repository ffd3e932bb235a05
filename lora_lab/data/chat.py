"""Conversations -> tokens, with a mask of what the assistant says."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadField
from lora_lab.data.turns import TEMPLATE_ERRORS, Span, TurnFinder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.data.examples import Conversation, Message

GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")

TEXTS = ("content", "reasoning_content", "reasoning", "thinking")
"""Keys of a message whose text is to be found in what the template writes."""


class ChatEncoder:
    """Encodes conversations by a tokenizer's chat template, and keeps count of what the template leaves out.

    The template alone decides on special tokens: none is added. One that marks the assistant's turns by
    `{% generation %}` is taken at its word; with another, a turn is what it adds to the generation prompt.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._read: set[str] = set()
        """Keys of messages, and `tools`, that changed what the template wrote."""
        self._ignored: Counter[str] = Counter()
        """Rows with a key that changed nothing."""
        self._dated = False
        self._left_out: list[str] = []
        """Messages whose text the template did not write as it is."""

    def encode(self, conversation: Conversation) -> tuple[list[int], list[bool]]:
        """The token ids of a conversation, as the template has it, and whether each is to be learned.

        Raises:
            InputError: a tokenizer without a chat template, or one that does not know the text behind a token.
            BadField: the template refuses the conversation, does not write what the assistant says, or does so
                in a way in which it cannot be told from the rest.
        """
        _check_tokenizer(conversation, self._tokenizer)
        messages, tools = conversation.messages, conversation.tools
        try:
            whole, marks = self._render_marked(messages, tools)
            self._look_for_what_is_left_out(conversation, whole)
        except TEMPLATE_ERRORS as error:
            raise BadField(
                "messages",
                f"the chat template refuses them ({_reason(error)}); correct the roles, their order, or their content",
            ) from None
        spans = self._learned_spans(conversation, whole, marks)
        try:
            encoded = self._tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except UnicodeEncodeError as error:
            raise BadField("messages", f"hold {whole[error.start]!a}, no valid Unicode; correct them") from None
        mask = tokens_within(encoded["offset_mapping"], spans)
        if not any(mask):
            raise BadField(
                "messages",
                "the chat template writes nothing for the assistant; correct its {% generation %} tags, or the row",
            )
        return list(encoded["input_ids"]), mask

    def notes(self, source: str) -> tuple[str, ...]:
        """What the user should know of what the template left out of the conversations so far."""
        notes = [
            f"{source}: the chat template does not read `{key}` ({rows} rows have it)"
            for key, rows in sorted(self._ignored.items())
            if key not in self._read
        ]
        if self._left_out:
            first, count = self._left_out[0], len(self._left_out)
            messages = "1 message" if count == 1 else f"{count} messages"
            notes.append(
                f"{source}: the chat template leaves out text of {messages} ({'first ' * (count > 1)}{first}); some "
                "templates leave out the thinking of earlier turns"
            )
        if self._dated:
            notes.append(
                f"{source}: the chat template asks for today's date: where it writes it, trials of another day have "
                "other tokens; a template without strftime_now has the same"
            )
        return tuple(notes)

    def _learned_spans(self, conversation: Conversation, whole: str, marks: list[Span] | None) -> list[Span]:
        if marks is not None and not conversation.given:
            return marks

        def render(messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
            return self._render(messages, conversation.tools, generation_prompt=generation_prompt)

        finder = TurnFinder(render, conversation.messages, whole, self._shared_tokens)
        turns = []
        for index in conversation.learned:
            turn = finder.find(index)
            if turn is None:
                raise BadField(
                    f"messages[{index}]",
                    "the chat template rewrites earlier messages, so that what the assistant says cannot be told from "
                    "the rest; put {% generation %} tags into the template, or split the row",
                )
            turns.append(turn)
        if marks is None:
            return turns
        return [(max(one[0], turn[0]), min(one[1], turn[1])) for one in marks for turn in turns]

    def _look_for_what_is_left_out(self, conversation: Conversation, whole: str) -> None:
        messages, tools = conversation.messages, conversation.tools
        keys = {key for message in messages for key in message} - {"role", "content"}
        for key in sorted(keys - self._read - {"tool_calls", *TEXTS}):
            self._count(key, changed=self._differs([_without(key, message) for message in messages], tools, whole))
        if tools and "tools" not in self._read:
            self._count("tools", changed=self._differs(messages, (), whole))
        for index, message in enumerate(messages):
            if "tool_calls" in message:
                silent = {"content": "", **_without("tool_calls", message)}
                if not self._differs([*messages[:index], silent, *messages[index + 1 :]], tools, whole):
                    raise BadField(
                        f"messages[{index}].tool_calls",
                        "the chat template does not write them; take a model whose template does, or delete the row",
                    )
            texts = [text for key, text in message.items() if key in TEXTS]
            if not all(str(text).strip() in whole for text in texts):
                self._left_out.append(f"{conversation.place} messages[{index}]")

    def _differs(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], whole: str) -> bool:
        try:
            return self._render(messages, tools) != whole
        except TEMPLATE_ERRORS:
            return True

    def _count(self, key: str, *, changed: bool) -> None:
        if changed:
            self._read.add(key)
        else:
            self._ignored[key] += 1

    def _shared_tokens(self, one: str, other: str) -> int:
        def tokens(text: str) -> list[tuple[int, int]]:
            encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            return list(zip(encoded["input_ids"], (end for _, end in encoded["offset_mapping"]), strict=True))

        shared = 0
        for mine, its in zip(tokens(one), tokens(other), strict=False):
            if mine != its:
                break
            shared = its[1]
        return shared

    def _render_marked(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[str, list[Span] | None]:
        """The whole conversation, and the spans in the template's {% generation %} tags; None without tags."""
        template = self._tokenizer.get_chat_template(tools=list(tools) or None)
        self._dated = self._dated or "strftime_now" in template
        if not GENERATION_TAG.search(template):
            return self._render(messages, tools), None
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered, marks = render_jinja_template(
            conversations=[list(messages)],
            tools=list(tools) or None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self._tokenizer.special_tokens_map,
        )
        return rendered[0], [(start, end) for start, end in marks[0]]

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, generation_prompt: bool = False
    ) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=generation_prompt
            )
        )


def tokens_within(offsets: Sequence[Span], spans: Sequence[Span]) -> list[bool]:
    """Whether each token holds a character of one of the spans.

    A token without characters of its own counts where it stands, unless some before it have no token: then it
    holds these, as the spaces that a byte-level tokenizer trims off its offsets.
    """
    mask, covered = [], 0
    for first, last in offsets:
        begin = min(covered, first) if first == last else first
        mask.append(any(begin < end and (last > start or begin == last == start) for start, end in spans))
        covered = max(covered, last)
    return mask


def _without(key: str, message: Message) -> Message:
    return {name: value for name, value in message.items() if name != key}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _check_tokenizer(conversation: Conversation, tokenizer: Any) -> None:
    if not tokenizer.chat_template:
        raise InputError(
            f"{conversation.place}: messages: need a chat template, but the model's tokenizer has none; set "
            "tokenizer.chat_template and save it with save_pretrained, take a chat model, or rows of `prompt` and "
            "`completion`"
        )
    if not tokenizer.is_fast:
        raise InputError(
            f"{conversation.place}: messages: need a fast tokenizer (it knows the text behind a token), "
            f"but this is a {type(tokenizer).__name__}; take rows of `prompt` and `completion`"
        )
