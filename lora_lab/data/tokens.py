"""Examples -> token ids and labels, cut to `max_length`, with a note of how much was cut."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_lab.data.chat import encode_conversation
from lora_lab.data.examples import Completion, Conversation, Example, Text, raise_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.data.sources import LoadedExamples

IGNORED = -100
"""The label of a token that no loss is taken on, as torch and transformers have it."""

TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedDataset:
    """Rows of tokens, one example each or (`positions`) several; the arrays of row i have the shape [its length]."""

    input_ids: tuple[TokenArray, ...]
    labels: tuple[TokenArray, ...]
    """The token ids themselves, not shifted, or -100 where no loss is taken."""
    fingerprint: str
    """The sha256 of all token ids and labels, and positions."""
    notes: tuple[str, ...]
    positions: tuple[TokenArray, ...] | None = None
    """The places of tokens in their examples, from 0, where rows hold several; None: one example each."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def label_tokens(self, index: int) -> int:
        """Tokens of a row that are predicted: its labels but the first, which has nothing before it."""
        return int(np.count_nonzero(self.labels[index][1:] != IGNORED))


@dataclass(frozen=True, slots=True)
class _Specials:
    """The ids that open and close a text."""

    before: list[int]
    after: list[int]

    def opened(self, ids: list[int]) -> list[int]:
        """`ids` with the beginning of a text before them, exactly once: some data brings its own."""
        return ids if ids[: len(self.before)] == self.before else self.before + ids

    def closed(self, ids: list[int]) -> list[int]:
        """`ids` with the end of a text after them, exactly once."""
        return ids if ids[-len(self.after) :] == self.after else ids + self.after


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The tokens of one example before they are cut."""

    ids: list[int]
    learned: list[bool]
    """Whether a token is to be predicted."""


def tokenize(loaded: LoadedExamples, tokenizer: Any, max_length: int) -> TokenizedDataset:
    """The examples as tokens of a `transformers` tokenizer; what is beyond `max_length` is cut on the right.

    Loss is taken on all tokens of a text, on the completion after a prompt, and on the assistant's turns of a
    conversation; an end-of-text token is learned with texts and completions.

    Raises InputError for examples without any label left, and for conversations that cannot be encoded.
    """
    encoded = _encode(loaded.examples, tokenizer)
    input_ids = tuple(np.asarray(row.ids[:max_length], np.int64) for row in encoded)
    labels = tuple(
        np.where(np.asarray(row.learned[:max_length], np.bool_), ids, IGNORED)
        for row, ids in zip(encoded, input_ids, strict=True)
    )
    _check_labels(loaded.examples, encoded, labels, max_length)
    lengths = [len(row.ids) for row in encoded]
    truncated = sum(length > max_length for length in lengths)
    cut_tokens = sum(max(0, length - max_length) for length in lengths)
    notes: list[str] = []
    if truncated:
        cut = f"{truncated} of {len(lengths)} rows are longer than max_length={max_length} tokens and were cut"
        notes.append(f"{loaded.source}: {cut} ({100 * cut_tokens / sum(lengths):.1f}% of tokens)")
    return TokenizedDataset(input_ids, labels, fingerprint(input_ids, labels), tuple(notes))


def _encode(examples: Sequence[Example], tokenizer: Any) -> list[_Encoded]:
    """All strings in one call of the tokenizer, which is parallel inside; conversations one by one."""
    ids = iter(_ids([text for example in examples for text in _strings(example)], tokenizer))
    specials = _specials(tokenizer)
    encoded = []
    for example in examples:
        match example:
            case Text():
                whole = specials.closed(specials.opened(next(ids)))
                encoded.append(_Encoded(whole, [True] * len(whole)))
            case Completion():
                given, learned = specials.opened(next(ids)), specials.closed(next(ids))
                encoded.append(_Encoded(given + learned, [False] * len(given) + [True] * len(learned)))
            case Conversation():
                encoded.append(_Encoded(*encode_conversation(example, tokenizer)))
    return encoded


def _strings(example: Example) -> tuple[str, ...]:
    match example:
        case Text():
            return (example.text,)
        case Completion():
            # Tokenized apart: the prompt's last token must not depend on the completion, which is not there
            # yet when the trained model is asked.
            return (example.prompt, example.completion)
        case Conversation():
            return ()


def _ids(texts: list[str], tokenizer: Any) -> list[list[int]]:
    if not texts:
        return []
    # verbose=False: the tokenizer warns of rows beyond the model's limit, which are cut and counted here.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return [list(ids) for ids in encoded["input_ids"]]


def _specials(tokenizer: Any) -> _Specials:
    """Found by asking: no attribute says reliably whether a tokenizer's own call adds its bos and eos."""
    bare, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return _Specials(list(whole[:start]), list(whole[start + len(bare) :]) or eos)


def _check_labels(
    examples: Sequence[Example], encoded: Sequence[_Encoded], labels: Sequence[TokenArray], max_length: int
) -> None:
    problems = [
        f"{example.place}: {_without_label(row, max_length)}"
        for example, row, kept in zip(examples, encoded, labels, strict=True)
        if not np.any(kept[1:] != IGNORED)
    ]
    raise_problems(problems, len(examples))


def _without_label(row: _Encoded, max_length: int) -> str:
    first = next((position for position, learned in enumerate(row.learned) if learned and position), None)
    if first is None:
        return f"has {len(row.ids)} token(s), so there is none to predict from; write more, or delete the row"
    return (
        f"no token to learn is left within max_length={max_length}; raise data.max_length to {first + 1} or "
        "more, or shorten the prompt"
    )


def fingerprint(*columns: Sequence[TokenArray]) -> str:
    """The sha256 of the columns' arrays, row after row; row i is as long in every column."""
    digest = hashlib.sha256()
    for first, *others in zip(*columns, strict=True):
        digest.update(len(first).to_bytes(8, "little"))
        for values in (first, *others):
            digest.update(values.astype("<i8").tobytes())
    return digest.hexdigest()
