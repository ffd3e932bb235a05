"""Strings -> token ids: what opens and closes a text, and a text that goes on where another ends."""

from __future__ import annotations

from typing import Any

from lora_lab.common.errors import InputError

ANCHORS = ("\n", ".", ":", "a")
"""What may stand before a text while its tokens are looked up: a tokenizer has a boundary after one of these."""

Ids = list[int]


class StringEncoder:
    """A `transformers` tokenizer, asked for what a text says and nothing else."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.before, self.after = _specials(tokenizer)
        """The ids that open and close a text."""
        self._needs_context = _needs_context(tokenizer)

    def encode(self, texts: list[str]) -> list[Ids]:
        """The ids of texts, without special tokens; one call of the tokenizer, which is parallel inside."""
        if not texts:
            return []
        # verbose=False: the tokenizer warns of rows beyond the model's limit, which are cut and counted elsewhere.
        encoded = self._tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [list(ids) for ids in encoded["input_ids"]]

    def opened(self, ids: Ids) -> Ids:
        """`ids` with the beginning of a text before them, exactly once: some data brings its own."""
        return ids if ids[: len(self.before)] == self.before else self.before + ids

    def closed(self, ids: Ids) -> Ids:
        """`ids` with the end of a text after them, exactly once."""
        return ids if ids[-len(self.after) :] == self.after else ids + self.after

    def continued(self, prompt: str, completion: str, alone: Ids) -> Ids:
        """The ids of a completion that goes on where the prompt ends; `alone`: its ids as a text of its own.

        The prompt's tokens never depend on the completion, which is not there yet when the trained model is
        asked. A tokenizer that puts a space before every text (as SentencePiece does) must not put one between the
        two, so there the completion is tokenized behind the prompt or, where a token would cross the border,
        behind another text.
        """
        if not self._needs_context or not prompt:
            return alone
        for anchor in (prompt, *ANCHORS):
            before, both = self.encode([anchor, anchor + completion])
            if len(both) > len(before) and both[: len(before)] == before:
                return both[len(before) :]
        return alone


def _specials(tokenizer: Any) -> tuple[Ids, Ids]:
    """Found by asking: no attribute says reliably whether a tokenizer's own call adds its bos and eos."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if bare and whole[i : i + len(bare)] == bare), None)
    if start is None:
        raise InputError(f"the tokenizer has no tokens for the letter a (it gives {bare}); take another tokenizer")
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return list(whole[:start]), list(whole[start + len(bare) :]) or eos


def _needs_context(tokenizer: Any) -> bool:
    """Whether two texts say something else when their tokens stand side by side."""
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(tokenizer.decode([*ids, *ids]) != "aa")
