"""Which cases of a long parametrized test run in `make test`: a sample of them; the others are slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


def sample(cases: Iterable[object], quick: Collection[object]) -> list:
    """All cases, for `pytest.mark.parametrize`; those that are not in `quick` are marked as slow.

    Raises:
        ValueError: a case of `quick` is none of the cases.
    """
    cases = list(cases)
    unknown = [case for case in quick if case not in cases]
    if unknown:
        raise ValueError(f"the sample has cases that the test has not: {unknown}")
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in quick else pytest.mark.slow)
        for case in cases
    ]
