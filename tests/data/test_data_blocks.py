"""Examples packed into rows: all of them, whole, once, in few rows, the same every time."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lora_lab.data.blocks import best_fit, pack_examples
from lora_lab.data.tokens import IGNORED, TokenizedDataset

LENGTHS = [
    [5],
    [8, 8, 8],
    [3, 3, 3, 3],
    [1] * 17,
    [7, 1, 6, 2, 5, 3, 4, 4],
    list(np.random.default_rng(0).integers(1, 9, size=200)),
]


def dataset(lengths, seed=0) -> TokenizedDataset:
    numbers = np.random.default_rng(seed)
    ids = tuple(numbers.integers(0, 100, size=int(length)) for length in lengths)
    labels = tuple(np.where(np.arange(len(row)) < len(row) // 3, IGNORED, row) for row in ids)
    return TokenizedDataset(ids, labels, "as it was", ("rows were cut",))


@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
def test_every_item_is_in_one_row_that_has_room_for_it(lengths):
    rows = best_fit(lengths, 8)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in row) <= 8 for row in rows)
    assert len(rows) <= math.ceil(11 / 9 * math.ceil(sum(lengths) / 8)) + 1
    assert best_fit(list(lengths), 8) == rows


def test_an_item_goes_where_the_least_room_is_left():
    assert best_fit([2, 6, 5, 3], 8) == [[1, 0], [2, 3]]


def test_the_time_does_not_grow_with_the_square_of_the_rows():
    lengths = [int(length) for length in np.random.default_rng(1).integers(200, 512, size=100_000)]
    rows = best_fit(lengths, 512)
    assert sum(map(len, rows)) == len(lengths)


@pytest.mark.parametrize("lengths", LENGTHS[1:], ids=len)
def test_rows_hold_whole_examples_that_do_not_predict_each_other(lengths):
    examples = dataset(lengths)
    packed = pack_examples(examples, 8)
    found = []
    for ids, labels, positions in zip(packed.input_ids, packed.labels, packed.positions, strict=True):
        assert ids.shape == labels.shape == positions.shape
        assert len(ids) <= 8
        starts = np.flatnonzero(positions == 0)
        assert (labels[starts] == IGNORED).all()
        for part, learned, place in zip(*(np.split(x, starts[1:]) for x in (ids, labels, positions)), strict=True):
            assert (place == np.arange(len(part))).all()
            found.append((tuple(part), tuple(learned[1:])))
    assert sorted(found) == sorted(
        (tuple(ids), tuple(labels[1:])) for ids, labels in zip(examples.input_ids, examples.labels, strict=True)
    )
    predicted = [sum(tokens.label_tokens(i) for i in range(len(tokens))) for tokens in (packed, examples)]
    assert predicted[0] == predicted[1]


def test_what_is_known_of_the_examples_is_kept_and_what_was_done_is_said():
    packed = pack_examples(dataset([4, 4, 2, 6, 8]), 8)
    assert packed.notes == (
        "rows were cut",
        (
            "data.packing: 5 training examples in 3 rows of up to 8 tokens, 100% full; "
            "per_device_train_batch_size counts rows"
        ),
    )


def test_the_fingerprint_is_that_of_the_rows_and_of_where_examples_begin():
    ids, labels = (np.arange(8),), (np.full(8, IGNORED),)
    examples = [
        TokenizedDataset(tuple(np.split(ids[0], cuts)), tuple(np.split(labels[0], cuts)), "", ())
        for cuts in ([4], [4, 6], [4])
    ]
    first, other, same = (pack_examples(tokens, 8) for tokens in examples)
    assert len(first) == len(other) == 1
    assert (first.input_ids[0] == other.input_ids[0]).all()
    assert first.fingerprint == same.fingerprint != other.fingerprint
