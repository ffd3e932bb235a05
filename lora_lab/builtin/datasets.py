"""The built-in datasets, generated where they are used: small, deterministic, with only the standard library.

`stdlib-code`, `stdlib-prose` and `stdlib-topics` read the running Python's library, so their rows differ a little
between versions of Python; `facts`, `quiz` and `style` are synthetic and the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from lora_lab.builtin.people import FIELDS, Person, people, prose_biography
from lora_lab.builtin.standard_library import (
    CODE_TRAIN_FILES,
    CODE_VALIDATION_FILES,
    PROSE_TRAIN_FILES,
    PROSE_VALIDATION_FILES,
    function_texts,
    prose_passages,
    read_source,
    windows,
)
from lora_lab.builtin.topics import topics
from lora_lab.common.errors import InputError
from lora_lab.common.files import write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

Row = dict[str, str]
"""One example: {"text"}, {"text", "label"} or {"prompt", "completion"}."""
ChoiceRow = dict[str, str | list[str]]
"""One example: {"prompt", "choices", "answer"}."""

_LIST_FORM = "\n- home: {city}\n- work: {job}\n- animal: {pet}\n- meal: {food}\n"

QUIZZED, CHOICES = 64, 4
"""People of `quiz`, and values that each of its questions offers."""
CODE_COST_LIMIT = 119.0
PROSE_COST_LIMIT = 131.0
"""Sizes by `token_cost` with which 95% of the windows fit into 128 tokens, and the mean is above 100."""


@dataclass(frozen=True)
class BuiltinDataset:
    """A dataset that is generated on demand."""

    description: str
    """What the rows are and what they are for, in one line."""
    make: Callable[[], Mapping[str, Sequence[Row | ChoiceRow]]]
    """Returns the rows of the splits "train" and "validation"."""


def write_dataset(name: str, folder: Path) -> dict[str, Path]:
    """Write a built-in dataset to `folder` as `train.jsonl` and `validation.jsonl`; returns split -> file.

    Each file appears complete or not at all, and writing again gives the same bytes.  `InputError` if the
    name is unknown, or if this Python came without the library files that are read.
    """
    if name not in BUILTIN_DATASETS:
        known = ", ".join(sorted(BUILTIN_DATASETS))
        raise InputError(f"no built-in dataset '{name}'; known are: {known}")
    splits = BUILTIN_DATASETS[name].make()
    files = {split: folder / f"{split}.jsonl" for split in splits}
    for split, rows in splits.items():
        write_durably(files[split], "".join(json.dumps(row) + "\n" for row in rows))
    return files


def stdlib_code() -> dict[str, list[Row]]:
    """Windows of functions without docstrings: 256 to train on, and 200 of other files.

    The order is a fixed shuffle, so that the first N rows are a fair sample.  The base saw no code but
    the examples in documentation.
    """
    return _text_splits(
        train=(_code_windows(path) for path in CODE_TRAIN_FILES),
        validation=(_code_windows(path) for path in CODE_VALIDATION_FILES),
        train_rows=256,
        validation_rows=200,
    )


def stdlib_prose() -> dict[str, list[Row]]:
    """Windows of docstrings and comments: what the base knows, to measure how much of it an adapter forgets.

    The 128 validation rows come from files that were held out from pretraining; the 256 train rows do not.
    """
    return _text_splits(
        train=(_prose_windows(path) for path in PROSE_TRAIN_FILES),
        validation=(_prose_windows(path) for path in PROSE_VALIDATION_FILES),
        train_rows=256,
        validation_rows=128,
    )


def _code_windows(path: str) -> list[str]:
    return list(windows(function_texts(read_source(path)), CODE_COST_LIMIT))


def _prose_windows(path: str) -> list[str]:
    return list(windows((f"{text}\n" for text in prose_passages(read_source(path))), PROSE_COST_LIMIT))


def _text_splits(
    *, train: Iterable[list[str]], validation: Iterable[list[str]], train_rows: int, validation_rows: int
) -> dict[str, list[Row]]:
    train_texts = {text for texts in train for text in texts}
    validation_texts = {text for texts in validation for text in texts} - train_texts
    return {
        "train": _sample(train_texts, train_rows),
        "validation": _sample(validation_texts, validation_rows),
    }


def _sample(texts: set[str], count: int) -> list[Row]:
    # Sorted by hash: a fixed shuffle in which a changed library file moves only its own rows.
    shuffled = sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())
    return [{"text": text} for text in shuffled[:count]]


def facts() -> dict[str, list[Row]]:
    """128 people with four random values each, to be learned by heart: what is measured is capacity.

    The validation rows are the training rows, because recall of the training records is the question; nothing
    about other people can be learned from them.  The base knows the form of a record, but no such person.
    """
    rows = [{"prompt": f"Record: {person.name}:", "completion": person.record()} for person in people("facts", 128)]
    return {"train": rows, "validation": rows}


def quiz() -> dict[str, list[ChoiceRow]]:
    """Questions about the first 64 people of `facts`, each with four values to choose among.

    The wrong ones are values of other people, so that nothing tells the right one but knowing the person: the base
    finds about a quarter. As of `facts`, the validation rows are the training rows.
    """
    known = people("facts", QUIZZED)
    rows = [_quizzed(person, field, {getattr(other, field) for other in known}) for person in known for field in FIELDS]
    return {"train": rows, "validation": rows}


def _quizzed(person: Person, field: str, values: set[str]) -> ChoiceRow:
    generator = random.Random(f"{person.name} {field}")  # noqa: S311 (synthetic text, not a secret)
    right = getattr(person, field)
    choices = [right, *generator.sample(sorted(values - {right}), CHOICES - 1)]
    generator.shuffle(choices)
    return {"prompt": person.question(field), "choices": choices, "answer": right}


def style() -> dict[str, list[Row]]:
    """Biographies to be retold as a list: the base knows how to copy the values, and only the form is new.

    A low rank suffices here, in contrast to `facts`.  128 people to train on and 100 others to validate on.
    """
    return {
        "train": [_retold_as_list(person) for person in people("style-train", 128)],
        "validation": [_retold_as_list(person) for person in people("style-validation", 100)],
    }


def _retold_as_list(person: Person) -> Row:
    generator = random.Random(person.name)  # noqa: S311 (synthetic text, not a secret)
    prompt = prose_biography(person, generator)
    return {"prompt": prompt, "completion": person.fill(_LIST_FORM)}


BUILTIN_DATASETS: Mapping[str, BuiltinDataset] = MappingProxyType(
    {
        "builtin/stdlib-code": BuiltinDataset("functions of the Python library: new to the base", stdlib_code),
        "builtin/stdlib-prose": BuiltinDataset("docstrings of the Python library: known to the base", stdlib_prose),
        "builtin/stdlib-topics": BuiltinDataset("what passages of the Python library are about: six classes", topics),
        "builtin/style": BuiltinDataset("biographies retold as lists: a new form, known content", style),
        "builtin/facts": BuiltinDataset("128 records to be learned by heart: a test of capacity", facts),
        "builtin/quiz": BuiltinDataset("256 questions about people, with four choices each", quiz),
    }
)
"""Name in a study file -> dataset."""
