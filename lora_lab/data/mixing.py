"""Which rows are held out, and how often rows of several datasets are trained on: pure functions of their numbers.

They are the same for all trials and seeds, or the trials' losses could not be compared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.data.order import permutation

if TYPE_CHECKING:
    from collections.abc import Sequence

HELD_OUT_KEY = 0x5EED
MIX_KEY = 0x314D
PART_KEY = 0x9A27


def held_out(n: int, share: float) -> frozenset[int]:
    """The indices of the rows that a share of n rows holds out for evaluation: `round(share * n)` of them."""
    return frozenset(permutation(n, HELD_OUT_KEY)[: round(share * n)].tolist())


def repeats(n: int, weight: float) -> int:
    """How many rows an epoch has of a dataset of n rows with this weight."""
    return round(weight * n)


def mixed(lengths: Sequence[int], weights: Sequence[float]) -> list[tuple[int, int]]:
    """The rows of an epoch of several datasets as (dataset, row), in a fixed mixed order.

    A weight of w has every row floor(w) times and, for what is left of w, a fixed part of the rows once more:
    `repeats(n, w)` rows in all.
    """
    rows = [
        (dataset, row)
        for dataset, (n, weight) in enumerate(zip(lengths, weights, strict=True))
        for row in _rows(n, repeats(n, weight))
    ]
    return [rows[index] for index in permutation(len(rows), MIX_KEY)]


def _rows(n: int, count: int) -> list[int]:
    whole, part = divmod(count, n) if n else (0, 0)
    return [*range(n)] * whole + sorted(permutation(n, PART_KEY)[:part].tolist())
