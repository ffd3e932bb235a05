from __future__ import annotations

import numpy as np
import pytest

from lora_lab.analysis.spectrum import spectrum, summarize
from lora_lab.common.errors import InputError


def factors(singular_values: list[float], d_in: int = 30, d_out: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """A and B whose product has these singular values, mixed by a rotation that leaves B A as it is."""
    rng = np.random.default_rng(0)
    r = len(singular_values)
    left, right = (np.linalg.qr(rng.normal(size=(d, r))).Q for d in (d_out, d_in))
    mix = rng.normal(size=(r, r)) + 3 * np.eye(r)
    return np.linalg.inv(mix) @ right.T, left @ np.diag(singular_values) @ mix


def test_singular_values_are_those_of_the_whole_update() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(6, 40)).astype(np.float32), rng.normal(size=(25, 6)).astype(np.float32)

    found = spectrum(a, b, scaling=2.0)

    whole = np.linalg.svdvals(2.0 * b.astype(np.float64) @ a.astype(np.float64))
    assert found.singular_values == pytest.approx(whole[:6], rel=1e-6)
    assert found.frobenius_norm == pytest.approx(np.linalg.norm(whole), rel=1e-6)


def test_equal_directions_use_the_whole_rank() -> None:
    found = spectrum(*factors([2.0, 2.0, 2.0, 2.0]), scaling=0.5)

    assert found.singular_values == pytest.approx([1.0] * 4)
    assert (found.effective_rank, found.stable_rank, found.rank_used) == (pytest.approx(4), pytest.approx(4), 4)
    assert (found.r, found.d_in, found.d_out) == (4, 30, 20)


def test_one_direction_is_rank_one_however_much_was_given() -> None:
    found = spectrum(*factors([3.0, 1e-9, 1e-9, 1e-9]), scaling=1.0)

    assert found.spectral_norm == pytest.approx(3.0)
    assert (found.effective_rank, found.stable_rank) == (pytest.approx(1, abs=1e-6), pytest.approx(1))
    assert found.rank_used == 1


def test_known_entropy_and_energy() -> None:
    found = spectrum(*factors([3.0, 1.0]), scaling=1.0)

    assert found.effective_rank == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert found.stable_rank == pytest.approx(10 / 9)
    assert found.rank_used == 2
    assert spectrum(*factors([10.0, 1.0]), scaling=1.0).rank_used == 1


def test_a_rank_above_the_matrix_has_as_many_values_as_the_matrix() -> None:
    rng = np.random.default_rng(2)

    found = spectrum(rng.normal(size=(8, 5)), rng.normal(size=(12, 8)), scaling=1.0)

    assert (found.r, len(found.singular_values)) == (8, 5)


def test_an_untrained_adapter_has_no_rank() -> None:
    found = spectrum(np.ones((4, 10)), np.zeros((10, 4)), scaling=2.0)

    assert (found.frobenius_norm, found.effective_rank, found.stable_rank, found.rank_used) == (0.0, 0.0, 0.0, 0)


def test_the_summary_counts_directions_over_all_modules() -> None:
    summary = summarize(
        [spectrum(*factors([1.0, 1.0, 1.0, 1.0]), scaling=1.0), spectrum(*factors([2.0, 0, 0, 0]), scaling=1.0)]
    )

    assert (summary.modules, summary.r) == (2, 4)
    assert summary.frobenius_norm == pytest.approx(np.sqrt(8))
    assert summary.share_used == pytest.approx(5 / 8)
    assert summary.rank_used == pytest.approx(2.5)


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"A \[4, 10\] and B \[12, 3\]"):
        spectrum(np.ones((4, 10)), np.ones((12, 3)), scaling=1.0)
    with pytest.raises(InputError, match="must be finite"):
        spectrum(np.full((4, 10), np.nan), np.ones((12, 4)), scaling=1.0)
    with pytest.raises(InputError, match="at least one module"):
        summarize([])
