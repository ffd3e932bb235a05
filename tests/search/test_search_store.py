"""Asking, telling and reading a study."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from lora_lab.common.errors import InputError, StorageError, TrainingError
from lora_lab.search.store import StudyStore, open_store
from lora_lab.search.urls import sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lora_lab.study.spec import StudySpec

LOSS = {"eval_loss": 1.5, "trainable_params": 100}


@pytest.fixture
def store(spec_of: Callable[..., StudySpec], url: str) -> Iterator[StudyStore]:
    with open_store(spec_of(), url) as opened:
        yield opened


def ask(store: StudyStore) -> int:
    asked = store.ask()
    assert asked is not None
    return asked.number


def test_results_come_back_as_they_were_told(store: StudyStore, spec_of: Callable[..., StudySpec], url: str) -> None:
    asked = [store.ask() for _ in range(5)]
    for evaluation, loss in ((1, 2.5), (2, 2.0)):
        store.report(0, evaluation, loss)
    store.finish(0, LOSS)
    store.prune(1, "not in the better half", {"eval_loss": 3.0})
    store.fail(2, "diverged", "loss is nan at step 7")
    store.fail(3, "out_of_memory", "needs 90 GB")
    with open_store(spec_of(), url, create=False) as reader:
        results = reader.results()
        assert reader.result(1) == results[1]
    assert [result.state for result in results] == [
        "complete", "pruned", "diverged", "out_of_memory", "running",
    ]  # fmt: skip
    assert [result.config for result in results] == [one.config for one in asked if one is not None]
    assert [result.params for result in results] == [one.params for one in asked if one is not None]
    assert results[0].metrics == LOSS
    assert results[0].curve == {1: 2.5, 2: 2.0}
    assert results[1].metrics == {"eval_loss": 3.0}
    assert results[2].reason == "loss is nan at step 7"


def test_telling_the_same_again_changes_nothing(store: StudyStore) -> None:
    for _ in range(4):
        ask(store)
    for _ in range(2):
        store.report(0, 1, 2.5)
        store.finish(0, LOSS)
        store.prune(1, "worse")
        store.fail(2, "diverged", "nan")
        store.share(3, 0)
    assert [result.state for result in store.results()] == ["complete", "pruned", "diverged", "shared"]
    assert store.budget() == (4, 6)


def test_an_ended_trial_keeps_its_state(store: StudyStore) -> None:
    store.prune(ask(store), "worse")
    with pytest.raises(StorageError, match=r"trial 0 is already pruned.*cannot become complete"):
        store.finish(0, LOSS)


def test_an_evaluation_counts_once(store: StudyStore) -> None:
    store.report(ask(store), 1, 2.0)
    store.report(0, 1, 9.0)
    assert store.results()[0].curve == {1: 2.0}


def test_a_trial_without_a_finite_objective_has_diverged(store: StudyStore) -> None:
    store.finish(ask(store), {"eval_loss": float("nan")})
    assert (store.results()[0].state, store.results()[0].reason) == ("diverged", "eval_loss is nan at the end")


def test_a_trial_without_its_objective_is_an_error_of_that_trial(store: StudyStore) -> None:
    with pytest.raises(TrainingError, match=r"trial 0 ended without eval_loss.*measured train_seconds"):
        store.finish(ask(store), {"train_seconds": 3.0})


def test_an_equivalent_trial_shares_the_outcome(store: StudyStore) -> None:
    for _ in range(5):
        ask(store)
    store.report(0, 1, 2.5)
    store.finish(0, LOSS)
    store.fail(1, "diverged", "nan")
    store.share(2, 0)
    store.share(3, 1)
    store.share(4, 0, metrics={"eval_loss": 2.5}, evaluations=1)
    two, three, four = store.results()[2:]
    assert (two.state, two.source, two.metrics, two.curve) == ("shared", 0, LOSS, {1: 2.5})
    assert (three.state, three.source, three.reason) == ("diverged", 1, "as trial 1: nan")
    assert (four.state, four.metrics, four.curve) == ("shared", {"eval_loss": 2.5}, {1: 2.5})


def test_a_replicate_repeats_its_source_with_its_own_seed(store: StudyStore) -> None:
    source = store.ask()
    assert source is not None
    store.finish(source.number, LOSS)
    for _ in range(2):  # as after a kill between two of them
        for replicate in (1, 2):
            store.enqueue_replicate(0, seed=100 + replicate, replicate=replicate)
    asked = [store.ask() for _ in range(3)]
    first, second, third = (one for one in asked if one is not None)
    assert (first.params, first.replicate, first.confirms) == (source.params, 1, 0)
    assert (second.config.training.seed, second.replicate) == (102, 2)
    assert first.config.model_dump(exclude={"training": {"seed"}}) == source.config.model_dump(
        exclude={"training": {"seed"}}
    )
    assert (third.replicate, third.confirms) == (0, None)
    assert store.budget() == (1, 6)


def test_impossible_combinations_fail_and_count(spec_of: Callable[..., StudySpec], url: str) -> None:
    parameters = {"r": {"values": [3, 4]}, "init_lora_weights": {"values": [True, "orthogonal"]}}
    with open_store(spec_of(sampler="grid", n_trials=None, parameters=parameters), url) as store:
        asked = list(iter(store.ask, None))
        assert len(asked) == 3
        assert store.budget() == (1, 4)
        assert len(store.results()) == 3


def test_nothing_but_impossible_combinations_is_an_error(
    spec_of: Callable[..., StudySpec], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lora_lab.search.asking.MAX_REFUSALS", 5)
    parameters = {"r": {"values": [3, 5]}, "init_lora_weights": {"values": ["orthogonal"]}}
    spec = spec_of(n_trials=1000, parameters=parameters)
    with open_store(spec, url) as store, pytest.raises(InputError, match=r"impossible .*needs an even r"):
        store.ask()


def test_the_study_is_stored_without_its_database_password(
    spec_of: Callable[..., StudySpec], url: str, tmp_path: Path
) -> None:
    spec = spec_of(storage="postgresql://user:canary@host/db")
    with open_store(spec, url) as store:
        assert store.record.stored_spec() is None
        store.record.replace_spec(spec)
        wider = spec.model_copy(update={"sweep": spec.sweep.model_copy(update={"n_trials": 9})})
    with open_store(wider, url) as store:
        assert store.record.stored_spec() == spec.model_copy(update={"storage": None})
        store.record.replace_spec(wider)
        assert store.record.stored_spec() == wider.model_copy(update={"storage": None})
        assert store.budget() == (0, 9)
    files = [file.read_bytes() for file in (tmp_path / "runs").iterdir()]
    assert not any(b"canary" in content for content in files)


def test_a_study_without_trials_takes_other_metrics(spec_of: Callable[..., StudySpec], url: str) -> None:
    open_store(spec_of(), url).close()
    two = spec_of(metric=[{"name": "eval_loss"}, {"name": "trainable_params"}], sampler="nsga2")
    with open_store(two, url) as store:
        assert not store.record.has_trials
        store.finish(ask(store), {**LOSS, "trainable_params": 1.0})
    with open_store(spec_of(), url) as store:
        assert len(store.results()) == 1  # the session refuses this change now that there is a trial


def test_contents_are_kept_by_source_once_there_are_trials(store: StudyStore) -> None:
    store.record.keep_contents({"data.train: a": "1", "data.eval: b": "2"})
    store.record.keep_contents({"data.train: c": "3"})
    assert store.record.contents() == {"data.train: c": "3"}
    ask(store)
    store.record.keep_contents({"data.forgetting: d": "4"})
    assert store.record.contents() == {"data.train: c": "3", "data.forgetting: d": "4"}


def test_what_belongs_to_the_study_is_kept(store: StudyStore, spec_of: Callable[..., StudySpec], url: str) -> None:
    assert store.record.base_values() is None
    store.record.keep_base_values({"eval_loss": 3.5, "forgetting_loss": None, "accuracy": 0.0})
    store.record.mark_complete()
    with open_store(spec_of(), url) as again, open_store(spec_of(n_trials=9), url) as wider:
        assert again.record.base_values() == {"eval_loss": 3.5, "accuracy": 0.0}
        assert (again.record.is_complete, wider.record.is_complete) == (True, False)


def test_what_was_declared_and_how_often_one_looked_is_kept(
    store: StudyStore, spec_of: Callable[..., StudySpec], url: str
) -> None:
    first, wider = spec_of(verdict={"margin": 0.05}), spec_of(verdict={"margin": 0.2}, n_trials=9)
    store.record.replace_spec(spec_of())
    store.record.replace_spec(first)  # nothing has begun: the study may still become another
    ask(store)
    assert (store.record.declared_verdict(), store.record.looks()) == (first.sweep.verdict, [])
    for seeds in (3, 3, 5):
        store.record.keep_look(seeds)
    with open_store(wider, url) as again:
        again.record.replace_spec(wider)
        assert (again.record.declared_verdict(), again.record.looks()) == (first.sweep.verdict, [3, 5])


def test_a_study_from_before_looks_were_kept_has_what_its_last_verdict_had(
    spec_of: Callable[..., StudySpec], url: str
) -> None:
    old = spec_of(verdict={"margin": 0.05}, confirm={"top": 2, "seeds": 3})
    with open_store(old, url) as store:
        ask(store)
        store._study.set_user_attr("spec", old.stored())
        store.record.mark_complete()
        store.record.replace_spec(spec_of(verdict={"margin": 0.01}, confirm={"top": 2, "seeds": 5}))
        assert (store.record.declared_verdict(), store.record.looks()) == (old.sweep.verdict, [3])


def test_a_study_is_read_only_where_there_is_one(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "runs" / "study.db")
    with pytest.raises(StorageError, match=r"no such file; run `python -m lora_lab.sweep`"):
        open_store(spec_of(), url, create=False)
    assert not (tmp_path / "runs").exists()
    open_store(spec_of(), url).close()
    other = spec_of().model_copy(update={"study_name": "other"})
    with pytest.raises(StorageError, match=r"no study 'other'"):
        open_store(other, url, create=False)


def test_results_are_read_while_a_sweep_runs(spec_of: Callable[..., StudySpec], url: str) -> None:
    spec = spec_of(n_trials=8)
    open_store(spec, url).close()
    done, seen, errors = threading.Event(), [], []

    def read() -> None:
        try:
            with open_store(spec, url, create=False) as reader:
                while not done.is_set():
                    seen.append([result.state for result in reader.results()].count("complete"))
        except Exception as error:  # noqa: BLE001 -- handed to the test's own thread
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    with open_store(spec, url) as store:
        while (asked := store.ask()) is not None:
            store.report(asked.number, 1, 2.0)
            store.finish(asked.number, LOSS)
    done.set()
    thread.join(30)
    assert not errors
    assert seen == sorted(seen)
    assert len(set(seen)) > 2


def test_parameters_with_one_value_and_tuples_keep_their_types(spec_of: Callable[..., StudySpec], url: str) -> None:
    parameters: dict[str, Any] = {
        "target_modules": {"values": [["q_proj"]]},
        "layers": {"values": [[0, 2]]},
        "use_rslora": {"values": [True]},
        "r": {"values": [8]},
        "alpha_ratio": {"values": [1]},
    }
    with open_store(spec_of(parameters=parameters), url) as store:
        asked = store.ask()
        assert asked is not None
        assert asked.params == {
            "target_modules": ("q_proj",), "layers": (0, 2), "use_rslora": True, "r": 8, "alpha_ratio": 1.0,
        }  # fmt: skip
        assert [type(value) for value in asked.params.values()] == [tuple, tuple, bool, int, float]
        assert store.results()[0].params == asked.params
        assert asked.config.lora.layers == (0, 2)
