"""Writes answers with a base and its adapters (an `Author`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.training.generation import answer_text
from lora_lab.training.sampling import Sampling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.serving.desk import Wish, Writing
    from lora_lab.training.adapted_base import AdaptedBase


class Writer:
    """A base, its adapters, and the tokenizer that reads and writes.

    Args:
        adapted: The base; its members are those of the server, in their order.
        tokenizer: Its own.
        ends: The tokens that end an answer.
    """

    def __init__(self, adapted: AdaptedBase, tokenizer: Any, ends: frozenset[int]) -> None:
        self._adapted, self._tokenizer, self.ends = adapted, tokenizer, ends

    def begin(self, wishes: Sequence[Wish]) -> Writing:
        """Begin answers that share their passes."""
        return self._adapted.stream(
            [(wish.member, wish.prompt) for wish in wishes],
            [Sampling(wish.temperature, wish.top_p, wish.seed) for wish in wishes],
        )

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, without special tokens."""
        return answer_text(self._tokenizer, tokens)
