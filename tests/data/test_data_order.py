"""Data order: a pure function of seed and epoch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.data.order import batches, epoch_order, permutation

SIZES = st.integers(1, 300)
SEEDS = st.integers(0, 2**31 - 1)
EPOCHS = st.integers(0, 1000)


@given(SIZES, SEEDS, EPOCHS)
def test_an_order_is_a_permutation_and_repeats(n, seed, epoch):
    order = epoch_order(n, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(n))
    assert np.array_equal(order, epoch_order(n, seed, epoch))


@given(SIZES, SEEDS, EPOCHS, st.integers(1, 64))
def test_batches_are_the_order_cut_into_pieces(n, seed, epoch, batch_size):
    pieces = batches(n, batch_size, seed, epoch)
    assert np.array_equal(np.concatenate(pieces), epoch_order(n, seed, epoch))
    assert all(len(piece) == batch_size for piece in pieces[:-1])
    assert 1 <= len(pieces[-1]) <= batch_size


@given(SIZES, SIZES, SEEDS, EPOCHS)
def test_rows_added_at_the_end_reorder_no_others(n, more, seed, epoch):
    longer = epoch_order(n + more, seed, epoch)
    assert np.array_equal(longer[longer < n], epoch_order(n, seed, epoch))


def test_seeds_and_epochs_give_different_orders():
    orders = {tuple(epoch_order(50, seed, epoch)) for seed in range(8) for epoch in range(8)}
    assert len(orders) == 64


def test_the_order_is_the_same_for_ever():
    """A study is resumed under another version of NumPy: these numbers may never change."""
    assert permutation(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert permutation(8, 1, 2).tolist() == [7, 1, 3, 0, 4, 2, 6, 5]


def test_every_position_is_equally_likely():
    counts = np.bincount([int(epoch_order(5, seed, 0)[0]) for seed in range(2000)], minlength=5)
    assert counts.min() > 330  # 400 expected, standard deviation 18
    assert counts.max() < 470
