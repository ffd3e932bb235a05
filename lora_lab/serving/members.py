"""Who can be asked, by name, and how a question becomes tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.data.strings import StringEncoder
from lora_lab.data.turns import TEMPLATE_ERRORS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BASE = "base"
"""The name of the bare base."""


@dataclass(frozen=True, slots=True)
class Member:
    """One that can be asked."""

    name: str
    """`base`, or such as `trial-7`."""
    aliases: tuple[str, ...] = ()
    """What the verdict calls it: `best`, `recommended`."""
    label: str = ""
    """Its configuration in a few words."""
    value: str = ""
    """What the study measured of it, in words."""

    def as_json(self) -> dict[str, Any]:
        """As `/v1/models` lists it."""
        more = {"aliases": list(self.aliases), "label": self.label, "value": self.value}
        return {"id": self.name, "object": "model", "created": 0, "owned_by": "lora_lab", **more}


class Members:
    """The members of a server.

    Args:
        all: In the order of their places.
        tokenizer: The base's.
        positions: Tokens that the base reads at most; None for no limit.
    """

    def __init__(self, all: Sequence[Member], tokenizer: Any, positions: int | None) -> None:  # noqa: A002
        self.all = tuple(all)
        self._tokenizer, self._positions = tokenizer, positions
        self._strings = StringEncoder(tokenizer)
        self._places = {name: place for place, one in enumerate(all) for name in (one.name, *one.aliases)}

    @property
    def has_chat(self) -> bool:
        """Whether conversations can be read."""
        return bool(self._tokenizer.chat_template)

    def place(self, name: str) -> int:
        """The place of a member; KeyError with a sentence where there is none of this name."""
        if name not in self._places:
            raise KeyError(f"there is no {name!r}; there are {', '.join(self._places)}")
        return self._places[name]

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The tokens of a conversation, up to where the assistant speaks.

        Raises:
            ValueError: there is no chat template, or it refuses the conversation.
        """
        if not self.has_chat:
            raise ValueError("messages: the base's tokenizer has no chat template; use /v1/completions with a prompt")
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(one) for one in messages],
                tools=[dict(one) for one in tools] or None,
                tokenize=False,
                add_generation_prompt=True,
            )
        except TEMPLATE_ERRORS as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"messages: the chat template refuses them ({reason})") from None
        return np.asarray(self._strings.encode([text])[0], np.int64)

    def text_prompt(self, text: str) -> np.ndarray:
        """The tokens of a text, with what the tokenizer puts before it.

        Raises:
            ValueError: it has none.
        """
        tokens = self._strings.opened(self._strings.encode([text])[0])
        if not tokens:
            raise ValueError("prompt: is empty, and this tokenizer puts nothing before a text")
        return np.asarray(tokens, np.int64)

    def check_room(self, prompt: int, new: int) -> None:
        """Raise ValueError where prompt and answer are more tokens than the base reads."""
        if self._positions is not None and prompt + new > self._positions:
            raise ValueError(
                f"max_tokens: {new} after a prompt of {prompt} tokens are more than the {self._positions} positions of "
                "this base; lower it or shorten the prompt"
            )

    def turn_end(self) -> frozenset[int]:
        """The special token with which the chat template ends a turn of the assistant, where there is one."""
        if not self.has_chat:
            return frozenset()
        user, assistant = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        try:
            before = self._tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
            whole = self._tokenizer.apply_chat_template([user, assistant], tokenize=False)
        except TEMPLATE_ERRORS:
            return frozenset()
        if not whole.startswith(before):
            return frozenset()
        special = set(self._tokenizer.all_special_ids)
        return frozenset([one for one in self._strings.encode([whole[len(before) :]])[0] if one in special][:1])
