"""Pruning a study of several metrics: the better half by non-dominated sorting."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from optuna.study._multi_objective import _fast_non_domination_rank

from lora_lab.search.pareto import _fronts, worse_half
from lora_lab.search.store import StudyStore, open_store
from lora_lab.study.sweep import Metric

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.measures import Measure
    from lora_lab.study.spec import StudySpec

METRICS = ({"name": "eval_loss"}, {"name": "trainable_params"})
LOSS_AND_SIZE = (Metric(name="eval_loss"), Metric(name="trainable_params"))


def figures(*rows: tuple[float, float]) -> dict[int, dict[str, float]]:
    return {number: {"eval_loss": loss, "trainable_params": size} for number, (loss, size) in enumerate(rows)}


def pack(store: StudyStore, size: int) -> list[int]:
    return [asked.number for asked in (store.ask() for _ in range(size)) if asked is not None]


def survivors(store: StudyStore, numbers: Sequence[int], rung: int, rows: dict[int, tuple[float, float]]) -> list[int]:
    """Report for all, then ask for each, in any order."""
    for number in numbers:
        loss, size = rows[number]
        store.report(number, rung, loss, {"trainable_params": size, "train_seconds": 1.0})
    asked = list(numbers)
    random.Random(len(asked)).shuffle(asked)
    rejected = {number for number in asked if store.should_prune(number)}
    for number in sorted(rejected):
        store.prune(number, "dominated", {"eval_loss": rows[number][0]})
    return [number for number in numbers if number not in rejected]


def test_the_dominated_half_of_the_first_pack_ends(spec_of: Callable[..., StudySpec], url: str) -> None:
    rows = {0: (1.0, 100), 1: (2.0, 10), 2: (3.0, 100), 3: (2.5, 20)}
    with open_store(spec_of(metric=METRICS, pruner="asha"), url) as store:
        assert survivors(store, pack(store, 4), 1, rows) == [0, 1]
        assert [one.state for one in store.results()] == ["running", "running", "pruned", "pruned"]


LEVELS = st.integers(0, 5).map(float)


@given(st.lists(st.tuples(LEVELS, LEVELS), min_size=1, max_size=12))
def test_who_is_dominated_by_nobody_goes_on(rows: list[tuple[float, float]]) -> None:
    reported = figures(*rows)
    ended = worse_half(reported, LOSS_AND_SIZE)
    front = {
        one
        for one, mine in enumerate(rows)
        if not any(theirs != mine and all(np.less_equal(theirs, mine)) for theirs in rows)
    }
    assert not front & ended
    kept = len(rows) - len(ended)
    assert kept == max(len(front), len(rows) // 2, 1)


@given(st.lists(st.tuples(LEVELS, LEVELS, LEVELS), min_size=1, max_size=15))
def test_fronts_are_optunas(rows: list[tuple[float, float, float]]) -> None:
    values = np.array(rows)
    ranks = np.zeros(len(rows), dtype=int)
    for rank, front in enumerate(_fronts(values)):
        ranks[front] = rank
    assert ranks.tolist() == _fast_non_domination_rank(values).tolist()


def test_of_the_last_front_the_most_isolated_go_on() -> None:
    """One dominates all; of the second front's four, its ends come first, then who has most room."""
    reported = figures((0, 0), (1, 4), (1.1, 3.9), (2, 2), (4, 1), (9, 9), (9.5, 9.5), (10, 10))
    assert worse_half(reported, LOSS_AND_SIZE) == {2, 5, 6, 7}


def test_of_a_score_more_is_better(accuracy: Measure) -> None:
    goals = (Metric(name="eval_loss"), Metric(name=accuracy.name))
    reported = {
        number: {"eval_loss": loss, accuracy.name: score}
        for number, (loss, score) in enumerate([(1, 0.10), (2, 0.01), (3, 0.20), (4, 0.02)])
    }
    assert worse_half(reported, goals) == {1, 3}


def test_costs_alone_end_nobody() -> None:
    goals = (Metric(name="forgetting"), Metric(name="trainable_params"))
    assert worse_half(figures((1, 1), (2, 2), (3, 3), (4, 4)), goals) == set()


def test_what_is_not_known_at_the_rung_has_no_say() -> None:
    goals = (*LOSS_AND_SIZE, Metric(name="forgetting"), Metric(name="peak_memory_bytes"))
    reported = figures((1, 1), (2, 2), (3, 3), (4, 4))
    assert worse_half(reported, goals) == {2, 3}
    reported[0]["peak_memory_bytes"] = 1.0  # of one trial only
    assert worse_half(reported, goals) == {2, 3}


def test_a_loss_that_is_no_number_ends(spec_of: Callable[..., StudySpec], url: str) -> None:
    rows = {0: (float("nan"), 1.0), 1: (2.0, 10.0)}
    with open_store(spec_of(metric=METRICS, pruner="asha"), url) as store:
        assert survivors(store, pack(store, 2), 1, rows) == [1]


def test_only_at_rungs_and_never_at_the_end(spec_of: Callable[..., StudySpec], url: str) -> None:
    parameters: dict[str, Any] = {"num_train_epochs": {"values": [4]}, "r": {"values": [2, 4, 8, 16]}}
    rows = {0: (1.0, 1.0), 1: (1.0, 1.0), 2: (1.0, 1.0), 3: (1.0, 1.0)}
    worse = rows | {3: (2.0, 2.0)}
    with open_store(spec_of(metric=METRICS, pruner="asha", parameters=parameters), url) as store:
        numbers = pack(store, 4)
        for rung, (now, left) in enumerate([(rows, 4), (rows, 4), (worse, 4), (worse, 4)], start=1):
            assert len(survivors(store, numbers, rung, now)) == left, rung


def test_without_a_pruner_nobody_ends(spec_of: Callable[..., StudySpec], url: str) -> None:
    rows = {number: (float(number), float(number)) for number in range(4)}
    with open_store(spec_of(metric=METRICS, pruner="none"), url) as store:
        assert len(survivors(store, pack(store, 4), 1, rows)) == 4


def test_replicates_are_neither_ended_nor_rivals(spec_of: Callable[..., StudySpec], url: str) -> None:
    with open_store(spec_of(metric=METRICS, pruner="asha"), url) as store:
        assert survivors(store, pack(store, 1), 1, {0: (5.0, 5.0)}) == [0]
        store.finish(0, {"eval_loss": 5.0, "trainable_params": 5.0})
        for replicate in (1, 2):
            store.enqueue_replicate(0, seed=replicate, replicate=replicate)
        assert survivors(store, pack(store, 2), 1, {1: (1.0, 1.0), 2: (99.0, 99.0)}) == [1, 2]
        assert survivors(store, pack(store, 1), 1, {3: (4.0, 9.0)}) == [3]


def test_after_a_kill_the_answers_are_the_same(spec_of: Callable[..., StudySpec], url: str) -> None:
    rows = {0: (1.0, 100.0), 1: (2.0, 10.0), 2: (3.0, 100.0), 3: (2.5, 20.0)}
    answers = []
    for _ in range(2):
        with open_store(spec_of(metric=METRICS, pruner="asha"), url) as store:
            numbers = [asked.number for asked in store.running()] or pack(store, 4)
            for number in numbers:
                store.report(number, 1, rows[number][0], {"trainable_params": rows[number][1]})
            answers.append([store.should_prune(number) for number in numbers])
    assert answers == [[False, False, True, True]] * 2
