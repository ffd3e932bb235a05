"""Several short examples in one row: fewer rows and fewer pads for the same tokens (`data.packing`)."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict

import numpy as np

from lora_lab.data.tokens import IGNORED, TokenArray, TokenizedDataset, fingerprint


def pack_examples(examples: TokenizedDataset, max_length: int) -> TokenizedDataset:
    """Join whole examples into rows of up to `max_length` tokens.

    Each row has the positions of its tokens in their examples, so that attention can be kept inside them. An
    example's first token is not learned: what stands before it belongs to another one.
    """
    rows = best_fit([len(ids) for ids in examples.input_ids], max_length)
    input_ids = tuple(np.concatenate([examples.input_ids[i] for i in row]) for row in rows)
    labels = tuple(np.concatenate([_without_first(examples.labels[i]) for i in row]) for row in rows)
    positions = tuple(np.concatenate([np.arange(len(examples.input_ids[i])) for i in row]) for row in rows)
    share = sum(map(len, input_ids)) / (len(rows) * max_length)
    note = (
        f"data.packing: {len(examples)} training examples in {len(rows)} rows of up to {max_length} tokens, "
        f"{share:.0%} full; per_device_train_batch_size counts rows"
    )
    return TokenizedDataset(
        input_ids,
        labels,
        fingerprint(input_ids, labels, positions),
        (*examples.notes, note),
        positions,
    )


def best_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Indices of the items in each row: the longest item first, each into the fullest row that has room for it.

    Best-fit decreasing, as TRL does it by default. The same lengths give the same rows.
    """
    rows: list[list[int]] = []
    by_room: defaultdict[int, list[int]] = defaultdict(list)
    """Numbers of the rows that have so much room left."""
    rooms: list[int] = []
    """The sizes of room that there are, in order."""
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        at = bisect_left(rooms, lengths[item])
        if at < len(rooms):
            room = rooms[at]
            row = by_room[room].pop()
            if not by_room[room]:
                rooms.pop(at)
            rows[row].append(item)
        else:
            room, row = capacity, len(rows)
            rows.append([item])
        left = room - lengths[item]
        if not by_room[left]:
            insort(rooms, left)
        by_room[left].append(row)
    return rows


def _without_first(labels: TokenArray) -> TokenArray:
    kept = labels.copy()
    kept[0] = IGNORED
    return kept
