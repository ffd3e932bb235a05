"""Rows with a class -> token ids as the tokenizer's own call makes them, cut to `max_length`, and the class's index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.common.activity import Activity, unwatched
from lora_lab.common.errors import InputError
from lora_lab.data.examples import Labeled
from lora_lab.data.tokens import BATCH_ROWS, IGNORED, Question, TokenizedDataset, fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.common.activity import Beat
    from lora_lab.data.sources import LoadedExamples
    from lora_lab.data.tokens import TokenArray


def tokenize_labeled(
    loaded: LoadedExamples,
    tokenizer: Any,
    max_length: int,
    classes: Sequence[str],
    *,
    with_questions: bool = False,
    beat: Beat = unwatched,
) -> TokenizedDataset:
    """The examples, which all have classes of `classes`, as tokens of a `transformers` tokenizer.

    Special tokens are those of the tokenizer's own call. Of a pair that is longer than `max_length`, tokens are cut off
    the longer text, one after the other (`truncation=True`); `beat` is called before every `BATCH_ROWS` examples.

    Raises:
        InputError: the tokenizer has no token to pad rows with.
    """
    if tokenizer.pad_token_id is None:
        raise InputError(
            "model.model_name_or_path: the tokenizer has no pad token, by which the model finds the end of a row "
            "(task_type SEQ_CLS); set tokenizer.pad_token, such as to tokenizer.eos_token, and save it beside the base"
        )
    examples = [example for example in loaded.examples if isinstance(example, Labeled)]
    rows: list[Mapping[str, list[int]]] = []
    truncated = 0
    for start in range(0, len(examples), BATCH_ROWS):
        beat(Activity(f"tokenizing {loaded.source}", start, len(examples), "rows"))
        for example, whole in _encoded(tokenizer, examples[start : start + BATCH_ROWS]):
            is_long = len(whole["input_ids"]) > max_length
            truncated += is_long
            rows.append(tokenizer(*example.texts, truncation=True, max_length=max_length) if is_long else whole)
    input_ids = tuple(np.asarray(row["input_ids"], np.int64) for row in rows)
    token_types = tuple(np.asarray(row.get("token_type_ids", [0] * len(row["input_ids"])), np.int64) for row in rows)
    index_of = {name: index for index, name in enumerate(classes)}
    indices = np.array([index_of[example.label] for example in examples], np.int64)
    cut = f"{truncated} of {len(rows)} rows are longer than max_length={max_length} tokens and were cut"
    of_class = [np.full_like(ids, one) for ids, one in zip(input_ids, indices, strict=True)]
    return TokenizedDataset(
        input_ids,
        tuple(np.full_like(ids, IGNORED) for ids in input_ids),
        fingerprint(input_ids, token_types, of_class),
        (f"{loaded.source}: {cut}",) if truncated else (),
        questions=_questions(examples, input_ids) if with_questions else (),
        classes=indices,
        token_types=token_types if any(types.any() for types in token_types) else None,
        pad=int(tokenizer.pad_token_id),
    )


def _encoded(tokenizer: Any, examples: Sequence[Labeled]) -> list[tuple[Labeled, Mapping[str, list[int]]]]:
    """Every example with its tokens before it is cut; texts and pairs in one call of the tokenizer each."""
    found: dict[int, Mapping[str, list[int]]] = {}
    for count in (1, 2):
        chosen = [index for index, example in enumerate(examples) if len(example.texts) == count]
        if chosen:
            columns = [list(texts) for texts in zip(*(examples[index].texts for index in chosen), strict=True)]
            encoded = tokenizer(*columns, verbose=False)
            found |= {
                index: {key: values[place] for key, values in encoded.items()} for place, index in enumerate(chosen)
            }
    return [(example, found[index]) for index, example in enumerate(examples)]


def _questions(examples: Sequence[Labeled], input_ids: Sequence[TokenArray]) -> tuple[Question, ...]:
    return tuple(
        Question(example.place, ids, example.label, None) for example, ids in zip(examples, input_ids, strict=True)
    )
