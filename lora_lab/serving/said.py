"""The text of an answer as its tokens come in."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What a token stands for that is a part of a character."""


class Said:
    """Collects tokens, and gives the new text that is certain by now.

    Args:
        decode: The text of tokens.
        stop: Texts that end the answer, and are no part of it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, tuple(stop)
        self._tokens: list[int] = []
        self._given = 0
        self.stopped = False
        """Whether one of the texts that end the answer was in it."""

    @property
    def count(self) -> int:
        """Tokens so far."""
        return len(self._tokens)

    def add(self, token: int) -> str:
        """Take one more token; the text that is certain since the last call."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.stopped = True
            return self._give(text, min(places))
        if text.endswith(UNFINISHED):
            return ""
        return self._give(text, len(text) - self._beginning_of_stop(text))

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        if self.stopped:
            return ""
        text = self._decode(self._tokens)
        return self._give(text, len(text))

    def _give(self, text: str, end: int) -> str:
        new = text[self._given : end]
        self._given = max(self._given, end)
        return new

    def _beginning_of_stop(self, text: str) -> int:
        """Characters at the end that may become a text which ends the answer."""
        lengths = (length for stop in self._stop for length in range(1, len(stop)) if text.endswith(stop[:length]))
        return max(lengths, default=0)
