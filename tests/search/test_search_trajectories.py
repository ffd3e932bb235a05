"""Trials that another one's training contains, in the storage."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import optuna
import pytest
from samples import sample

from lora_lab.search.store import StudyStore, open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.search.records import Asked
    from lora_lab.study.spec import StudySpec

PARAMETERS: dict[str, Any] = {
    "num_train_epochs": {"values": [1, 2, 3]},
    "r": {"values": [2, 4, 8]},
    "target_modules": {"values": ["attention", ["q_proj", "v_proj"]]},
    "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
    "weight_decay": {"min": 0.0, "max": 0.2, "step": 0.1},
    "lora_dropout": {"values": [0.0, 0.05], "when": {"r": {"min": 4}}},
}


def ask(store: StudyStore) -> Asked:
    asked = store.ask()
    assert asked is not None
    return asked


def shorter(asked: Asked, epochs: int) -> dict[str, Any]:
    return {**asked.params, "num_train_epochs": epochs}


def in_optuna(store: StudyStore) -> list[optuna.trial.FrozenTrial]:
    return store._study.get_trials()


def test_a_trial_that_is_read_off_is_there_as_one_that_was_asked_for(
    spec_of: Callable[..., StudySpec], url: str
) -> None:
    with open_store(spec_of(parameters=PARAMETERS), url) as store:
        source = ask(store)
        for evaluation, value in enumerate((3.0, 2.0, 1.0), start=1):
            store.report(0, evaluation, value)
        number = store.add_read_off(0, shorter(source, 2), {"eval_loss": 2.0, "steps": 8.0}, 2)
        assert number == 1
        result = store.result(1)
        trained, added = in_optuna(store)
    assert (result.state, result.source, result.eval_loss, result.curve) == ("shared", 0, 2.0, {1: 3.0, 2: 2.0})
    assert result.params == shorter(source, 2)
    assert result.config.training.num_train_epochs == 2
    assert (added.state, added.values) == (optuna.trial.TrialState.COMPLETE, [2.0])
    assert added.distributions == trained.distributions
    assert added.params == trained.params | {"num_train_epochs": 2}
    assert added.constraints == {"trainable": -1}


@pytest.mark.parametrize(
    "sampler",
    [
        *sample(["tpe", "random", "qmc", "nsga2"], ["tpe", "nsga2"]),
        pytest.param("gp", marks=[pytest.mark.torch, pytest.mark.slow]),
    ],
)
def test_the_next_questions_know_it(spec_of: Callable[..., StudySpec], url: str, sampler: str) -> None:
    with open_store(spec_of(parameters=PARAMETERS, sampler=sampler, n_trials=40), url) as store:
        for _ in range(12):
            asked = ask(store)
            store.report(asked.number, 1, 2.0)
            if asked.config.training.num_train_epochs > 1:
                store.add_read_off(asked.number, shorter(asked, 1), {"eval_loss": 2.0}, 1)
            store.finish(asked.number, {"eval_loss": 1.0})
        added = [trial for trial, one in zip(in_optuna(store), store.results(), strict=True) if one.source is not None]
        assert added
        if sampler == "nsga2":
            assert all("NSGAIISampler:generation" in trial.system_attrs for trial in added)


def test_it_counts_in_the_budget(spec_of: Callable[..., StudySpec], url: str) -> None:
    with open_store(spec_of(parameters=PARAMETERS, n_trials=3), url) as store:
        source = ask(store)
        assert store.ask(reserved=2) is None
        assert store.add_read_off(0, shorter(source, 1), {"eval_loss": 2.0}, 1) == 1
        assert store.ask(reserved=1) is None
        assert ask(store).number == 2
        assert store.add_read_off(0, shorter(source, 2), {"eval_loss": 2.0}, 2) is None
        assert store.add_branch(0, shorter(source, 2), 1) is None
        assert store.budget() == (1, 3)


def ask_long(store: StudyStore) -> Asked:
    """A trial of 3 epochs; others fail before they report."""
    while (asked := ask(store)).params["num_train_epochs"] < 3:
        store.fail(asked.number, "failed", "too short")
    return asked


def test_a_training_is_one_rival_at_a_rung(spec_of: Callable[..., StudySpec], url: str) -> None:
    """The best of three goes on; with what was read off the best as rivals, the second would too."""
    with open_store(spec_of(parameters=PARAMETERS, pruner="asha", n_trials=40), url) as store:
        best, second, third = (ask_long(store) for _ in range(3))
        for asked, value in ((best, 1.0), (second, 1.5), (third, 2.0)):
            store.report(asked.number, 1, value)
        read_off = store.add_read_off(best.number, shorter(best, 1), {"eval_loss": 1.0}, 1)
        branch = store.add_branch(best.number, shorter(best, 2), 1)
        assert read_off is not None
        assert branch is not None
        assert [store.should_prune(one.number) for one in (best, second, third)] == [False, True, True]
        store.prune(second.number, "worse")
        follower = ask(store)
        store.share(follower.number, second.number)
        assert store.result(follower.number).curve == {1: 1.5}
        aside = [in_optuna(store)[number] for number in (read_off, branch.number, follower.number)]
        assert not any(trial.intermediate_values for trial in aside)


def test_a_branch_goes_on_with_the_curve_so_far(spec_of: Callable[..., StudySpec], url: str) -> None:
    spec = spec_of(parameters=PARAMETERS)
    with open_store(spec, url) as store:
        source = ask(store)
        store.report(0, 1, 3.0)
        branch = store.add_branch(0, shorter(source, 2), 1)
        assert branch is not None
        assert (branch.number, branch.branched_from, branch.params) == (1, 0, shorter(source, 2))
        store.report(1, 1, 99.0)
        store.report(1, 2, 2.0)
    with open_store(spec, url) as store:
        assert [(one.number, one.branched_from) for one in store.running()] == [(0, None), (1, 0)]
        store.finish(1, {"eval_loss": 2.0})
        result = store.result(1)
    assert (result.state, result.source, result.curve) == ("complete", None, {1: 3.0, 2: 2.0})


def test_a_trial_that_was_asked_for_can_become_a_branch(spec_of: Callable[..., StudySpec], url: str) -> None:
    with open_store(spec_of(parameters=PARAMETERS), url) as store:
        ask(store)
        ask(store)
        store.report(0, 1, 3.0)
        assert store.branch(1, 0, 1).branched_from == 0
        assert store.result(1).curve == {1: 3.0}


def test_what_is_read_off_without_a_finite_objective_has_diverged(spec_of: Callable[..., StudySpec], url: str) -> None:
    with open_store(spec_of(parameters=PARAMETERS), url) as store:
        source = ask(store)
        store.add_read_off(0, shorter(source, 1), {"eval_loss": float("inf")}, 1)
        assert (store.result(1).state, store.result(1).reason) == ("diverged", "eval_loss is inf at the end")


def test_a_grid_asks_for_the_longest_of_a_trajectory_first(spec_of: Callable[..., StudySpec], url: str) -> None:
    grid = {name: PARAMETERS[name] for name in ("num_train_epochs", "r", "target_modules", "lora_dropout")}
    with open_store(spec_of(sampler="grid", n_trials=None, parameters=grid), url) as store:
        asked = list(iter(store.ask, None))
    epochs = [one.params["num_train_epochs"] for one in asked]
    assert epochs == [3, 2, 1] * (len(asked) // 3)
    rest = [{name: value for name, value in one.params.items() if name != "num_train_epochs"} for one in asked]
    assert rest[::3] == rest[1::3] == rest[2::3]


def test_a_cell_that_was_read_off_is_not_asked_for(spec_of: Callable[..., StudySpec], url: str) -> None:
    grid = {name: PARAMETERS[name] for name in PARAMETERS if name != "learning_rate"}
    with open_store(spec_of(sampler="grid", n_trials=None, parameters=grid), url) as store:
        total = store.budget()[1]
        while (asked := store.ask()) is not None:
            for epochs in (1, 2) if asked.params["num_train_epochs"] == 3 else ():
                store.add_read_off(asked.number, shorter(asked, epochs), {"eval_loss": 1.0}, epochs)
            store.finish(asked.number, {"eval_loss": 1.0})
        results = store.results()
    assert len(results) == total
    assert len({tuple(one.params.items()) for one in results}) == total
    assert sum(one.source is None for one in results) == total // 3


def test_where_the_rate_knows_the_length_the_order_stays(spec_of: Callable[..., StudySpec], url: str) -> None:
    grid = {
        "num_train_epochs": {"values": [1, 2, 3]},
        "r": {"values": [2, 4, 8]},
        "lr_scheduler_type": {"values": ["linear"]},
    }
    with open_store(spec_of(sampler="grid", n_trials=None, parameters=grid), url) as store:
        epochs = [one.params["num_train_epochs"] for one in iter(store.ask, None)]
    assert epochs != [3, 2, 1] * 3
