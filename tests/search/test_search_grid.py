"""Every cell of a grid once, whatever happens in between."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from lora_lab.common.errors import InputError
from lora_lab.search.space import SearchSpace
from lora_lab.search.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.study.spec import StudySpec

GRID: dict[str, Any] = {
    "r": {"values": [2, 8]},
    "layers": {"values": ["all", [0, 1]]},
    "weight_decay": {"min": 0, "max": 0.3, "step": 0.1},
    "lora_dropout": {"values": [0.0, 0.1, 0.2], "when": {"r": {"min": 4}}},
}
CELLS = 2 * 4 + 2 * 4 * 3
"""Where r is 2 the dropout is not searched, so there the grid is smaller."""


def test_cells_are_stored_in_one_order_and_form(spec_of: Callable[..., StudySpec]) -> None:
    """A study that goes on finds its cells again by what Optuna's storage has of them."""
    spec = spec_of(sampler="grid", n_trials=None, parameters=GRID | {"r": {"values": [8, 2]}})
    decays = [0.0, 0.1, 0.2, 0.3]
    layers = ["all", "[0, 1]"]
    assert list(SearchSpace(spec).cells()) == [
        *(
            {"r": 8, "layers": layer, "weight_decay": decay, "lora_dropout": dropout}
            for layer in layers
            for decay in decays
            for dropout in (0.0, 0.1, 0.2)
        ),
        *({"r": 2, "layers": layer, "weight_decay": decay} for layer in layers for decay in decays),
    ]


def test_a_resumed_grid_visits_each_cell_once(spec_of: Callable[..., StudySpec], url: str) -> None:
    spec = spec_of(sampler="grid", n_trials=None, parameters=GRID)
    visited = []
    for _ in range(CELLS // 6 + 2):
        with open_store(spec, url) as store:
            # Six trials are asked for, and the session ends before the last two do.
            left = store.running()
            fresh = [asked for asked in (store.ask() for _ in range(6)) if asked is not None]
            visited += [tuple(asked.params.items()) for asked in fresh]
            for asked in [*left, *fresh[:4]]:
                store.finish(asked.number, {"eval_loss": 1.0})
    assert len(visited) == CELLS
    assert len(set(visited)) == CELLS
    assert {dict(cell)["weight_decay"] for cell in visited} == {0.0, 0.1, 0.2, 0.3}
    assert {dict(cell)["layers"] for cell in visited} == {"all", (0, 1)}


def test_a_budget_below_the_grid_spreads_over_it(spec_of: Callable[..., StudySpec], url: str) -> None:
    with open_store(spec_of(sampler="grid", n_trials=8, parameters=GRID), url) as store:
        asked = [store.ask() for _ in range(8)]
        assert store.ask() is None
        assert store.budget() == (0, 8)
    assert {one.config.lora.r for one in asked if one is not None} == {2, 8}


def test_a_budget_beyond_the_grid_ends_with_the_grid(spec_of: Callable[..., StudySpec], url: str) -> None:
    grid = {"r": {"values": [2, 4]}}
    with open_store(spec_of(sampler="grid", n_trials=50, parameters=grid), url) as store:
        numbers = [asked.number for asked in iter(store.ask, None)]
        assert (numbers, store.budget()) == ([0, 1], (0, 2))


def test_replicates_take_no_cell(spec_of: Callable[..., StudySpec], url: str) -> None:
    grid = {"r": {"values": [2, 4, 8]}}
    with open_store(spec_of(sampler="grid", n_trials=None, parameters=grid), url) as store:
        first = store.ask()
        assert first is not None
        store.finish(first.number, {"eval_loss": 1.0})
        store.enqueue_replicate(first.number, seed=5, replicate=1)
        rest = list(iter(store.ask, None))
        for asked in rest:
            store.finish(asked.number, {"eval_loss": 1.0})
        assert [asked.replicate for asked in rest] == [1, 0, 0]
        assert {asked.config.lora.r for asked in [first, *rest[1:]]} == {2, 4, 8}


def test_an_endless_grid_is_refused(spec_of: Callable[..., StudySpec], url: str) -> None:
    grid = {"r": {"min": 1, "max": 4096, "step": 1}, "lora_dropout": {"min": 0, "max": 0.9, "step": 0.001}}
    with pytest.raises(InputError, match=r"100000 cells.*sampler: random"):
        open_store(spec_of(sampler="grid", n_trials=10, parameters=grid), url)
