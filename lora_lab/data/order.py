"""In which order a trial sees its examples: a pure function of the seed and the epoch.

No state is carried from step to step, so a resumed trial is at its place at once, and trials of one replicate
see the same examples at the same time (common random numbers), which makes their comparison paired.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]


def permutation(n: int, *key: int) -> IndexArray:
    """A permutation of 0 .. n-1 that depends on `n` and `key` alone.

    Without its element n-1 it is the permutation of n-1: rows added at the end reorder no others.
    Sorts raw Philox output, because NumPy promises never to change the streams of its bit generators, but not
    those of `Generator.permutation`, and a study may be resumed under another version of NumPy.
    """
    sort_keys = np.random.Philox(np.random.SeedSequence(list(key))).random_raw(n)
    return np.argsort(sort_keys, kind="stable").astype(np.int64)


def epoch_order(n: int, seed: int, epoch: int) -> IndexArray:
    """The order of the n examples in an epoch (from 0); shape [n]."""
    return permutation(n, seed, epoch)


def batches(n: int, batch_size: int, seed: int, epoch: int) -> list[IndexArray]:
    """`epoch_order` cut into index arrays of `batch_size`; the last may be shorter."""
    order = epoch_order(n, seed, epoch)
    return [order[start : start + batch_size] for start in range(0, n, batch_size)]
