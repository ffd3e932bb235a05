"""Greedy decoding, whichever engine does it: what ends an answer, and which prompts are answered side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.common.activity import Activity, unwatched
from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from lora_lab.common.activity import Beat

Answers = list[list[np.ndarray]]
"""The new tokens [n] int64 of every answer, prompt after prompt, of one trial after the other."""


@dataclass(frozen=True, slots=True)
class Until:
    """Texts that end an answer as soon as they are in it, wherever tokens begin and end."""

    tokenizer: Any
    texts: tuple[str, ...]

    def ends(self, tokens: Sequence[int]) -> bool:
        """Whether one of the texts is in what these new tokens say."""
        said = answer_text(self.tokenizer, tokens)
        return any(text in said for text in self.texts)

    def cut(self, tokens: Sequence[int] | np.ndarray) -> str:
        """What these new tokens say before the first of the texts."""
        said = answer_text(self.tokenizer, tokens)
        for text in self.texts:
            said = said.partition(text)[0]
        return said


@dataclass(frozen=True, slots=True)
class Greedy:
    """The most likely token at every place, with nothing that shifts it (no penalty, no temperature)."""

    max_new_tokens: int
    stop: frozenset[int]
    """Tokens that end an answer; one of them is its last token, unless `max_new_tokens` came before."""
    until: Until | None = None
    """Texts that end one too."""


def end_tokens(tokenizer: Any, model: Any) -> frozenset[int]:
    """The tokens that end an answer, by the tokenizer's and the base's own word (chat models may have several).

    Raises:
        InputError: there is none.
    """
    config = getattr(model, "generation_config", None)
    known = (tokenizer.eos_token_id, None if config is None else config.eos_token_id)
    ends = {int(one) for ends in known if ends is not None for one in (ends if isinstance(ends, list) else [ends])}
    if not ends:
        raise InputError(
            "evaluation.metrics: answers need a token that ends them, but the base's tokenizer has no eos_token; set "
            "tokenizer.eos_token to one of its tokens and save it with save_pretrained, or drop the metrics"
        )
    return frozenset(ends)


def answer_text(tokenizer: Any, tokens: Sequence[int] | np.ndarray, stop: Collection[int] = ()) -> str:
    """What an answer says: without the token that ended it and without special tokens."""
    ids = [int(token) for token in tokens]
    return str(tokenizer.decode(ids[:-1] if ids and ids[-1] in stop else ids, skip_special_tokens=True))


def side_by_side(lengths: Sequence[int], rows: int, most_apart: int, beat: Beat = unwatched) -> Iterator[np.ndarray]:
    """Indices of prompts to be answered together, each once, those of similar length together, the longest first.

    Args:
        lengths: Tokens of every prompt.
        rows: How many there are at once, at most.
        most_apart: By how many tokens they differ at most.
        beat: Called before each group of them.
    """
    for done, group in enumerate(groups := _groups(lengths, rows, most_apart)):
        beat(Activity("answers to prompts", done, len(groups)))
        yield group


def _groups(lengths: Sequence[int], rows: int, most_apart: int) -> list[np.ndarray]:
    order = np.argsort([-length for length in lengths], kind="stable")
    groups: list[list[int]] = []
    for index in order:
        if not groups or len(groups[-1]) == rows or lengths[groups[-1][0]] - lengths[index] > most_apart:
            groups.append([])
        groups[-1].append(int(index))
    return [np.array(group) for group in groups]
