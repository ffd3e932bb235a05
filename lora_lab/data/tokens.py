"""Examples -> token ids and labels, cut to `max_length`, with a note of how much was cut."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lora_lab.common.activity import Activity, unwatched
from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadField, BadRows
from lora_lab.data.chat import ChatEncoder
from lora_lab.data.examples import Completion, Conversation, Example, Labeled, Text
from lora_lab.data.strings import StringEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.common.activity import Beat
    from lora_lab.data.sources import LoadedExamples

IGNORED = -100
"""The label of a token that no loss is taken on, as torch and transformers have it."""

BATCH_ROWS = 1000
"""Tokenized in one call."""

TokenArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """One of the completions that a prompt of multiple choice may have."""

    text: str
    """Without the white space between the prompt and it."""
    tokens: TokenArray
    """[n], as they follow the prompt, without what ends a text."""


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What a trained model is asked, and what it should answer: a completion, the assistant's last turn, or a class."""

    place: str
    """Where the row stands, such as `data.jsonl:3`."""
    prompt: TokenArray
    """[n], never cut."""
    reference: str
    end: int | None
    """The special token that ends the answer as it is learned: of a chat template, not always the tokenizer's own."""
    choices: tuple[Choice, ...] = ()
    """What the answer is one of, where the row is multiple choice."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """The columns that the row was read from."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenizedDataset:
    """Rows of tokens, one example each or (`positions`) several; the arrays of row i have the shape [its length]."""

    input_ids: tuple[TokenArray, ...]
    labels: tuple[TokenArray, ...]
    """The token ids themselves, not shifted, or -100 where no loss is taken: on all of a row that has a class."""
    fingerprint: str
    """The sha256 of all token ids and labels, and positions; or, of rows with classes, of these and token types."""
    notes: tuple[str, ...]
    positions: tuple[TokenArray, ...] | None = None
    """The places of tokens in their examples, from 0, where rows hold several; None: one example each."""
    questions: tuple[Question, ...] = ()
    """One for every row, where the rows have answers and these were asked for."""
    classes: TokenArray | None = None
    """[rows]: the index of each row's class, where that is learned instead of tokens."""
    token_types: tuple[TokenArray, ...] | None = None
    """Which of a row's two texts each token is of, where the base is told it (`token_type_ids`)."""
    pad: int = 0
    """The token id that rows are padded with."""

    def __len__(self) -> int:
        return len(self.input_ids)

    def label_tokens(self, index: int) -> int:
        """Tokens of a row that are predicted: its labels but the first, which has nothing before it; or its class."""
        if self.classes is not None:
            return 1
        return int(np.count_nonzero(self.labels[index][1:] != IGNORED))


@dataclass(frozen=True, slots=True)
class _Encoded:
    """The tokens of one example before they are cut."""

    example: Example
    ids: list[int]
    learned: list[bool]
    """Whether a token is to be predicted."""


def tokenize(
    loaded: LoadedExamples,
    tokenizer: Any,
    max_length: int,
    *,
    bad: BadRows | None = None,
    with_questions: bool = False,
    beat: Beat = unwatched,
) -> TokenizedDataset:
    """The examples as tokens of a `transformers` tokenizer; what is beyond `max_length` is cut on the right.

    Loss is taken on all tokens of a text, on the completion after a prompt, and on the assistant's turns of a
    conversation; an end-of-text token is learned with texts and completions. Examples without any label left, and
    conversations that cannot be encoded, go into `bad`; `beat` is called before every `BATCH_ROWS` of them.

    Raises:
        InputError: a tokenizer that cannot encode such examples; without `bad`, also for bad rows.
    """
    own = bad is None
    bad = BadRows(rows=len(loaded)) if bad is None else bad
    chat = ChatEncoder(tokenizer)
    encoded: list[_Encoded] = []
    for start in range(0, len(loaded), BATCH_ROWS):
        beat(Activity(f"tokenizing {loaded.source}", start, len(loaded), "rows"))
        batch = _encode(loaded.examples[start : start + BATCH_ROWS], tokenizer, chat, bad)
        encoded += (row for row in batch if _has_label(row, max_length, bad))
    if own:
        bad.settle()
    if bad.skip and not encoded:
        raise InputError(f"{loaded.source}: no row is left that can be learned; correct the rows")
    input_ids = tuple(np.asarray(row.ids[:max_length], np.int64) for row in encoded)
    labels = tuple(
        np.where(np.asarray(row.learned[:max_length], np.bool_), ids, IGNORED)
        for row, ids in zip(encoded, input_ids, strict=True)
    )
    lengths = [len(row.ids) for row in encoded]
    truncated = sum(length > max_length for length in lengths)
    cut_tokens = sum(max(0, length - max_length) for length in lengths)
    notes = list(chat.notes(loaded.source))
    if truncated:
        cut = f"{truncated} of {len(lengths)} rows are longer than max_length={max_length} tokens and were cut"
        notes.append(f"{loaded.source}: {cut} ({100 * cut_tokens / sum(lengths):.1f}% of tokens)")
    asked = with_questions and not any(isinstance(row.example, Text) for row in encoded)
    questions = tuple(_questions(encoded, tokenizer)) if asked else ()
    return TokenizedDataset(input_ids, labels, fingerprint(input_ids, labels), tuple(notes), questions=questions)


def _questions(rows: Sequence[_Encoded], tokenizer: Any) -> Iterator[Question]:
    """One for each row; the choices of all of them are tokenized in one call."""
    special, strings = set(tokenizer.all_special_ids), StringEncoder(tokenizer)
    texts = [text for row in rows if isinstance(row.example, Completion) for text in row.example.choices]
    ids = iter(strings.encode(texts))
    for row in rows:
        question = _question(row, tokenizer, special)
        if isinstance(row.example, Completion) and row.example.choices:
            prompt = row.example.prompt
            tokens = [(text, strings.continued(prompt, text, next(ids))) for text in row.example.choices]
            choices = tuple(Choice(text.strip(), np.asarray(own, np.int64)) for text, own in tokens)
            question = replace(question, choices=choices)
        yield question


def _question(row: _Encoded, tokenizer: Any, special: set[int]) -> Question:
    """The prompt ends where what is learned last begins; a turn is read from its tokens, as an answer will be."""
    stop = next(place for place in range(len(row.ids), 0, -1) if row.learned[place - 1])
    start = next((place for place in range(stop, 0, -1) if not row.learned[place - 1]), 0)
    said = row.ids[start:stop]
    columns = {} if isinstance(row.example, (Text, Labeled)) else row.example.row
    if isinstance(row.example, Completion):
        answer = row.example.completion
    else:
        answer = str(tokenizer.decode(said, skip_special_tokens=True))
    end = next((token for token in reversed(said) if token in special), None)
    prompt = np.asarray(row.ids[:start], np.int64)
    return Question(row.example.place, prompt, answer, end, row=columns)


def _encode(examples: Sequence[Example], tokenizer: Any, chat: ChatEncoder, bad: BadRows) -> Iterator[_Encoded]:
    """All strings in one call of the tokenizer; conversations one by one."""
    strings = StringEncoder(tokenizer)
    ids = iter(strings.encode([text for example in examples for text in _strings(example)]))
    for example in examples:
        match example:
            case Text():
                whole = strings.closed(strings.opened(next(ids)))
                yield _Encoded(example, whole, [True] * len(whole))
            case Completion(prompt, completion):
                given = strings.opened(next(ids))
                learned = strings.closed(strings.continued(prompt, completion, next(ids)))
                yield _Encoded(example, given + learned, [False] * len(given) + [True] * len(learned))
            case Conversation():
                try:
                    yield _Encoded(example, *chat.encode(example))
                except BadField as error:
                    bad.add(example.place, error)
            case Labeled():
                raise AssertionError("rows with classes are tokenized by tokenize_labeled")


def _strings(example: Example) -> tuple[str, ...]:
    match example:
        case Text():
            return (example.text,)
        case Completion():
            return (example.prompt, example.completion)
        case Conversation() | Labeled():
            return ()


def _has_label(row: _Encoded, max_length: int, bad: BadRows) -> bool:
    first = next((position for position, learned in enumerate(row.learned) if learned and position), None)
    if first is None:
        bad.add(
            row.example.place,
            f"has {len(row.ids)} token(s), so there is none to predict from; write more, or delete the row",
        )
    elif first >= max_length:
        bad.add(
            row.example.place,
            f"no token to learn is left within max_length={max_length}; raise data.max_length to {first + 1} or "
            "more, or shorten the prompt",
        )
    return first is not None and first < max_length


def fingerprint(*columns: Sequence[TokenArray]) -> str:
    """The sha256 of the columns' arrays, row after row; row i is as long in every column."""
    digest = hashlib.sha256()
    for first, *others in zip(*columns, strict=True):
        digest.update(len(first).to_bytes(8, "little"))
        for values in (first, *others):
            digest.update(values.astype("<i8").tobytes())
    return digest.hexdigest()
