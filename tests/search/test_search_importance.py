from __future__ import annotations

import builtins
import math
import sys
from dataclasses import replace

import numpy as np
import optuna
import pytest
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances

from lora_lab.analysis.pareto import front, hypervolume
from lora_lab.search.importance import importances
from lora_lab.search.store import open_store
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult
from lora_lab.study.spec import StudySpec


def study_spec(sampler="random", metric="eval_loss", **sweep):
    parameters = {
        "r": {"values": [4, 8, 16, 32, 64]},
        "target_modules": {"values": ["all-linear", ["q_proj", "v_proj"]]},
        "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
        "lora_dropout": {"values": [0.0, 0.05], "when": {"r": {"min": 32}}},
    }
    return StudySpec.model_validate(
        {
            "study_name": "importance",
            "model": {"model_name_or_path": "builtin/tiny-llama"},
            "data": {"train": "builtin/stdlib-code"},
            "sweep": {
                "sampler": sampler,
                "pruner": "none",
                "n_trials": 60,
                "metric": metric,
                "parameters": parameters,
                **sweep,
            },
        }
    )


def run(store):
    """Tell every trial a loss that the learning rate decides, and the rank a little."""
    while (asked := store.ask()) is not None:
        lora, rate = asked.config.lora, asked.config.training.learning_rate
        loss = 4.0 + 0.3 * math.log10(rate / 2e-3) ** 2 - 0.01 * math.log2(lora.r)
        figures = {"eval_loss": loss, "accuracy": loss / 8, "trainable_params": 1000.0 * lora.r}
        store.finish(asked.number, figures)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    url = f"sqlite:///{tmp_path_factory.mktemp('importance')}/study.db"
    spec = study_spec()
    with open_store(spec, url) as store:
        run(store)
        yield spec, store, optuna.load_study(study_name="importance", storage=url)


@pytest.mark.slow
def test_importances_are_those_that_optuna_computes_on_the_study_itself(finished):
    spec, store, study = finished

    found = importances(spec, store.results())

    assert found is not None
    assert found.trials == 60
    ped_anova, fanova = found.shares["PED-ANOVA"], found.shares["fANOVA"]
    assert ped_anova == pytest.approx(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator()))
    assert fanova.keys() == get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)).keys()
    assert next(iter(ped_anova)) == next(iter(fanova)) == "learning_rate"
    assert set(ped_anova) == {"r", "target_modules", "learning_rate", "lora_dropout"}
    assert "lora_dropout" not in fanova
    assert sum(fanova.values()) == pytest.approx(1.0)


def test_a_rate_that_is_searched_by_its_logarithm_counts_on_that_scale():
    """Two parameters that do equally much over their ranges have half each; on the plain scale the rate had a third."""
    spec = study_spec(
        "random",
        parameters={
            "learning_rate": {"min": 1e-5, "max": 1e-2, "log": True},
            "lora_dropout": {"min": 0.0, "max": 0.9},
        },
    )
    rng, trials = np.random.default_rng(0), []
    for number in range(100):
        rate, dropout = rng.uniform(0, 1, 2)
        chosen = {"learning_rate": float(10 ** (3 * rate - 5)), "lora_dropout": float(0.9 * dropout)}
        config = spec.trial_config(chosen)
        metrics = {"eval_loss": 4 + float(rate + dropout)}
        trials.append(
            TrialResult(
                number=number,
                state="complete",
                params=chosen,
                config=config,
                engine=engine_for(config),
                metrics=metrics,
            )
        )

    shares = importances(spec, trials).shares["fANOVA"]

    assert shares["learning_rate"] == pytest.approx(0.5, abs=0.06)


def test_the_best_trial_is_optunas(finished):
    _, store, study = finished
    best = min(store.results(), key=lambda result: result.eval_loss)

    assert (best.number, best.eval_loss) == (study.best_trial.number, study.best_value)


def test_retrainings_of_the_best_do_not_make_their_values_look_decisive(finished):
    spec, store, _ = finished
    best = min(store.results(), key=lambda result: result.eval_loss)
    again = [replace(best, number=100 + i, replicate=i, confirms=best.number) for i in range(1, 4)]

    assert importances(spec, [*store.results(), *again]) == importances(spec, store.results())


def test_the_caveat_says_what_the_sampler_did(finished):
    spec, store, _ = finished
    trials = store.results()

    assert "region" not in importances(spec, trials).caveat
    assert "best tenth" not in importances(spec, trials).caveat
    few = importances(study_spec("tpe"), trials[:12]).caveat
    assert "the region that the sampler (tpe) searched" in few
    assert "here 2 trials: read it as a hint" in few


def test_what_a_score_depends_on_is_found_as_for_a_loss(finished, accuracy):
    """The better the lower loss, so the shares are those of the loss; taken for a loss, the worst tenth would count."""
    spec, store, _ = finished
    scored = [
        replace(one, metrics={**one.metrics, accuracy.name: 1 - one.metrics["eval_loss"] / 8})
        for one in store.results()
    ]

    found = importances(study_spec(metric=accuracy.name), scored)

    assert found.shares["PED-ANOVA"] == pytest.approx(importances(spec, scored).shares["PED-ANOVA"])


def test_too_few_trials_or_values_have_no_importance(finished):
    spec, store, _ = finished

    assert importances(spec, store.results()[:9]) is None


def test_without_scikit_learn_there_is_ped_anova_alone(finished, monkeypatch):
    spec, store, _ = finished
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith(("sklearn", "optuna.importance._fanova"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)

    assert set(importances(spec, store.results()).shares) == {"PED-ANOVA"}


@pytest.mark.parametrize("name", ["eval_loss", "accuracy"])
def test_the_pareto_front_is_optunas(tmp_path, accuracy, name):
    url = f"sqlite:///{tmp_path}/study.db"
    spec = study_spec(metric=[{"name": name}, {"name": "trainable_params"}], n_trials=16)
    with open_store(spec, url) as store:
        run(store)
        study = optuna.load_study(study_name="importance", storage=url)

        found = front(store.results(), ("trainable_params",), spec.sweep.judged)

    assert found is not None
    assert {member.number for member in found.members} == {trial.number for trial in study.best_trials}


@pytest.mark.parametrize("axes", [2, 3, 4, 5])
def test_the_hypervolume_is_optunas(axes):
    import numpy as np
    from optuna._hypervolume import compute_hypervolume

    rng = np.random.default_rng(axes)
    points, reference = rng.uniform(size=(15, axes)), np.full(axes, 1.1)

    assert hypervolume(points.tolist(), reference.tolist()) == pytest.approx(compute_hypervolume(points, reference))
