"""One contract for every sampler of a study file."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from samples import sample

from lora_lab.search.samplers import build_sampler
from lora_lab.search.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.search.store import Asked
    from lora_lab.study.spec import StudySpec

SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "grid": optuna.samplers.RandomSampler,
    "random": optuna.samplers.RandomSampler,
    "qmc": optuna.samplers.QMCSampler,
    "gp": optuna.samplers.GPSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
GRID: dict[str, Any] = {
    "r": {"values": [2, 4, 8, 64]},
    "warmup_steps": {"min": 1, "max": 9, "step": 2},
    "lora_dropout": {"values": [0.0, 0.05], "when": {"r": {"min": 8}}},
}


def loss_of(asked: Asked) -> float:
    return abs(math.log(asked.config.training.learning_rate / 1e-3)) + 1 / asked.config.lora.r


def run(spec: StudySpec, url: str) -> list[Asked]:
    """Train every trial for three evaluations, or until it is pruned."""
    seen = []
    with open_store(spec, url) as store:
        while (asked := store.ask()) is not None:
            seen.append(asked)
            for evaluation in (1, 2, 3):
                store.report(asked.number, evaluation, loss_of(asked) + 1 / evaluation)
                if store.should_prune(asked.number):
                    store.prune(asked.number, "worse than others")
                    break
            else:
                store.finish(asked.number, {"eval_loss": loss_of(asked), "train_seconds": 1.0})
    return seen


def assert_in_space(asked: Asked) -> None:
    params, config = asked.params, asked.config
    assert params["r"] in (2, 4, 8, 64)
    assert type(params["r"]) is int
    assert params["warmup_steps"] in (1, 3, 5, 7, 9)
    assert ("lora_dropout" in params) == (params["r"] >= 8)  # type: ignore[operator]
    assert params.get("lora_dropout", 0.0) in (0.0, 0.05)
    assert (config.lora.r, config.training.warmup_steps) == (params["r"], params["warmup_steps"])


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=pytest.mark.torch) if name == "gp" else name for name in SAMPLERS]
)
def test_every_sampler_stays_in_the_space_and_in_the_budget(
    spec_of: Callable[..., StudySpec], url: str, sampler: str
) -> None:
    spec = spec_of(sampler=sampler, n_trials=8, **({"parameters": GRID} if sampler == "grid" else {}))
    assert type(build_sampler(spec.sweep, 0)) is SAMPLERS[sampler]
    seen = run(spec, url)
    assert [asked.number for asked in seen] == list(range(8))
    for asked in seen:
        assert_in_space(asked)
        if sampler != "grid":
            assert asked.params["target_modules"] in ("attention", ("q_proj", "v_proj"))
            assert type(asked.params["use_rslora"]) is bool
            assert 1e-4 <= asked.config.training.learning_rate <= 1e-2
    with open_store(spec, url, create=False) as store:
        assert store.budget() == (8, 8)
        assert [result.params for result in store.results()] == [asked.params for asked in seen]
        assert [result.config for result in store.results()] == [asked.config for asked in seen]


def test_two_metrics_are_searched_and_never_pruned(spec_of: Callable[..., StudySpec], url: str) -> None:
    metrics = [{"name": "eval_loss"}, {"name": "train_seconds", "goal": "minimize"}]
    spec = spec_of(sampler="tpe", metric=metrics, n_trials=12)
    assert len(run(spec, url)) == 12
    with open_store(spec, url) as store:
        assert all(list(result.curve) == [1, 2, 3] for result in store.results())
        assert {result.state for result in store.results()} == {"complete"}


def choices(spec: StudySpec, url: str, sessions: tuple[int, ...]) -> list[Any]:
    """What is asked for when the study is opened anew for each session of so many trials."""
    asked = []
    for trials in sessions:
        with open_store(spec, url) as store:
            for _ in range(trials):
                one = store.ask()
                assert one is not None
                asked.append(one.params)
                store.finish(one.number, {"eval_loss": loss_of(one)})
    return asked


@pytest.mark.parametrize("sampler", sample(["tpe", "qmc", "nsga2"], ["tpe", "nsga2"]))
def test_a_resumed_study_makes_the_choices_of_an_undisturbed_one(
    spec_of: Callable[..., StudySpec], url: str, sampler: str
) -> None:
    spec = spec_of(sampler=sampler, n_trials=12, seed=7)
    undisturbed = choices(spec, url, (12,))
    assert choices(spec, url + "2", (1, 4, 6, 1)) == undisturbed
    assert len({repr(params) for params in undisturbed}) > 9  # no draws repeated by the seeds


def test_another_seed_makes_other_choices(spec_of: Callable[..., StudySpec], url: str) -> None:
    assert choices(spec_of(seed=7), url, (2,)) != choices(spec_of(seed=8), url + "2", (2,))


@pytest.mark.parametrize(
    "sampler", [*sample(["tpe", "nsga2"], ["tpe"]), pytest.param("gp", marks=[pytest.mark.torch, pytest.mark.slow])]
)
def test_samplers_learn_where_trials_diverge(spec_of: Callable[..., StudySpec], url: str, sampler: str) -> None:
    """Half of the space diverges. A sampler that learns goes there less often; one told `failed` would not."""
    space = {"learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}, "r": {"values": [2, 4]}}
    trials = 32 if sampler == "nsga2" else 22  # a genetic search needs some generations
    diverged = []
    with open_store(spec_of(sampler=sampler, n_trials=trials, parameters=space), url) as store:
        while (asked := store.ask()) is not None:
            rate = asked.config.training.learning_rate
            if rate > 1e-3:
                store.fail(asked.number, "diverged", "loss is nan")
                diverged.append(asked.number)
            else:
                store.finish(asked.number, {"eval_loss": abs(math.log(rate / 3e-4))})
    late = sum(number >= trials // 2 for number in diverged)
    assert late <= trials // 2 * 0.4, f"{late} of the last {trials // 2} trials diverged"
