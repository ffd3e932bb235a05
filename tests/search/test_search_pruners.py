"""Which trials are stopped early."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import optuna
import pytest
from samples import sample

from lora_lab.search.pruners import BetterHalfPruner, build_pruner
from lora_lab.search.store import StudyStore, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.measures import Measure
    from lora_lab.study.spec import StudySpec

PRUNERS = {
    "asha": BetterHalfPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "median": optuna.pruners.MedianPruner,
    "none": optuna.pruners.NopPruner,
}


def survivors(store: StudyStore, numbers: Sequence[int], evaluation: int, losses: Sequence[float]) -> list[int]:
    """Report for all, then ask for each: the trials that go on."""
    for number, loss in zip(numbers, losses, strict=True):
        store.report(number, evaluation, loss)
    rejected = [number for number in numbers if store.should_prune(number)]
    for number in rejected:
        store.prune(number, "worse than others")
    return [number for number in numbers if number not in rejected]


def pack(store: StudyStore, size: int) -> list[int]:
    return [asked.number for asked in (store.ask() for _ in range(size)) if asked is not None]


@pytest.mark.parametrize("pruner", sample(PRUNERS, ["asha", "hyperband", "median"]))
def test_every_pruner_lets_the_best_trial_through(spec_of: Callable[..., StudySpec], url: str, pruner: str) -> None:
    """Packs of four, the best trial in the first and in the last of them."""
    spec = spec_of(pruner=pruner, n_trials=16)
    assert type(build_pruner(spec)) is PRUNERS[pruner]
    with open_store(spec, url) as store:
        for offset in (0, 4, 8, 12):
            losses = {offset + place: 5.0 + offset + place for place in range(4)} | {0: 1.0, 15: 0.5}
            left = pack(store, 4)
            for evaluation in (1, 2, 3):
                left = survivors(store, left, evaluation, [losses[number] for number in left])
            for number in left:
                store.finish(number, {"eval_loss": losses[number]})
        results = store.results()
    assert any(one.state == "pruned" for one in results) == (pruner != "none")
    assert min((one for one in results if one.has_value), key=lambda one: one.metrics["eval_loss"]).number == 15


@pytest.mark.parametrize("seed", range(3))
def test_the_better_half_of_a_pack_goes_on_whatever_the_order(
    spec_of: Callable[..., StudySpec], url: str, seed: int
) -> None:
    losses = [float(loss) for loss in range(8)]
    random.Random(seed).shuffle(losses)
    with open_store(spec_of(pruner="asha", n_trials=8), url) as store:
        first = survivors(store, pack(store, 8), 1, losses)
        assert sorted(losses[number] for number in first) == [0, 1, 2, 3]
        second = survivors(store, first, 2, [losses[number] for number in first])
        assert sorted(losses[number] for number in second) == [0, 1]
        assert survivors(store, second, 3, [losses[number] for number in second]) == second


def test_the_better_half_of_the_largest(spec_of: Callable[..., StudySpec], url: str, accuracy: Measure) -> None:
    """By the score that the study maximizes, here against the losses."""
    scores = [0.1, 0.4, 0.3, 0.2]
    with open_store(spec_of(pruner="asha", metric=accuracy.name), url) as store:
        numbers = pack(store, 4)
        for number, score in zip(numbers, scores, strict=True):
            store.report(number, 1, score, {accuracy.name: score})
        assert [number for number in numbers if not store.should_prune(number)] == [1, 2]


def test_a_trial_that_comes_later_is_compared_with_all_before(spec_of: Callable[..., StudySpec], url: str) -> None:
    with open_store(spec_of(pruner="asha"), url) as store:
        assert survivors(store, pack(store, 4), 1, [1.0, 2.0, 3.0, 4.0]) == [0, 1]
        assert survivors(store, pack(store, 1), 1, [2.5]) == []
        assert survivors(store, pack(store, 1), 1, [1.5]) == [5]


def test_a_loss_that_is_no_number_is_rejected_and_counts_for_nothing(
    spec_of: Callable[..., StudySpec], url: str
) -> None:
    with open_store(spec_of(pruner="asha"), url) as store:
        assert survivors(store, pack(store, 3), 1, [float("nan"), 2.0, 1.0]) == [2]


def test_a_replicate_is_never_pruned_and_judges_nobody(spec_of: Callable[..., StudySpec], url: str) -> None:
    with open_store(spec_of(pruner="asha"), url) as store:
        assert survivors(store, pack(store, 1), 1, [5.0]) == [0]
        store.finish(0, {"eval_loss": 5.0})
        for replicate in (1, 2):
            store.enqueue_replicate(0, seed=replicate, replicate=replicate)
        assert survivors(store, pack(store, 2), 1, [1.0, 99.0]) == [1, 2]
        assert survivors(store, pack(store, 1), 1, [4.0]) == [3]


def test_the_decision_is_the_same_when_asked_again_after_a_kill(spec_of: Callable[..., StudySpec], url: str) -> None:
    spec = spec_of(pruner="asha")
    for _ in range(2):
        with open_store(spec, url) as store:
            numbers = [asked.number for asked in store.running()] or pack(store, 3)
            for number, loss in zip(numbers, (2.0, 1.0, 3.0), strict=True):
                store.report(number, 1, loss)
            assert [store.should_prune(number) for number in numbers] == [True, False, True]


def test_nothing_is_pruned_after_its_last_evaluation(spec_of: Callable[..., StudySpec], url: str) -> None:
    parameters = {"num_train_epochs": {"values": [1]}, "r": {"values": [2, 4]}}
    with open_store(spec_of(pruner="asha", parameters=parameters), url) as store:
        assert survivors(store, pack(store, 3), 1, [1.0, 2.0, 3.0]) == [0, 1, 2]


def test_hyperband_knows_the_longest_trial(spec_of: Callable[..., StudySpec]) -> None:
    def longest(**epochs: object) -> object:
        parameters = {"r": {"values": [2, 8]}, "num_train_epochs": epochs}
        return build_pruner(spec_of(pruner="hyperband", parameters=parameters))._max_resource

    assert longest(values=[6, 4]) == 6
    assert longest(min=1, max=9, step=3) == 7
    assert longest(min=1, max=9) == 9
    # where r is 8, a trial has the 3 epochs that the study fixes
    assert longest(values=[1, 2], when={"r": 2}) == 3
