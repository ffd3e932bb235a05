from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lora_lab.study.settings import LoraSettings
from lora_lab.study.spec import StudySpec
from lora_lab.study.sweep import SEARCHABLE, SECTIONS, Condition, Parameter, SweepSettings


def spec(parameters: dict[str, Any], **settings: Any) -> StudySpec:
    return StudySpec.model_validate({
        "study_name": "s", "model": {"model_name_or_path": "m"}, "data": {"train": "t"},
        "sweep": {"n_trials": 4, "parameters": parameters}, **settings,
    })  # fmt: skip


def test_every_searchable_name_is_a_field_of_its_section() -> None:
    for name, section in SEARCHABLE.items():
        assert name in SECTIONS[section].model_fields


def test_names_are_unique_over_the_sections() -> None:
    names = [name for section in ("training", "lora") for name in SECTIONS[section].model_fields]
    assert len(set(names)) == len(names)


@given(st.integers(1, 4096), st.floats(1e-3, 1e3))
def test_scaling_is_alpha_over_r_or_over_its_root(r: int, alpha: float) -> None:
    assert LoraSettings(r=r, lora_alpha=alpha).scaling == alpha / r
    assert LoraSettings(r=r, lora_alpha=alpha, use_rslora=True).scaling == alpha / math.sqrt(r)
    assert LoraSettings(r=r).scaling == 2


def test_a_trial_takes_the_chosen_values_and_keeps_the_rest() -> None:
    study = spec({"r": {"values": [4, 8]}, "max_length": {"values": [16, 32]}}, lora={"lora_dropout": 0.1})
    config = study.trial_config({"r": 8, "max_length": 32})
    assert (config.lora.r, config.data.max_length, config.lora.lora_dropout) == (8, 32, 0.1)
    assert config.data.train.path == "t"


@pytest.mark.parametrize(
    ("fixed", "chosen", "alpha"),
    [
        ({"lora_alpha": 3.0}, {"alpha_ratio": 2.0}, 32.0),
        ({"alpha_ratio": 3.0}, {"lora_alpha": 5.0}, 5.0),
        ({"alpha_ratio": 3.0}, {}, 48.0),
        ({}, {}, 32.0),
    ],
)
def test_a_searched_alpha_replaces_the_fixed_one(fixed: dict[str, Any], chosen: dict[str, Any], alpha: float) -> None:
    study = spec({name: {"values": [1.0, 2.0]} for name in chosen} or {"r": {"values": [16]}}, lora=fixed)
    assert study.trial_config(chosen).lora.alpha == alpha


def test_conditions_decide_what_is_searched() -> None:
    study = spec({
        "r": {"values": [4, 64]}, "target_modules": {"values": ["mlp", ["q", "v"]]},
        "lora_dropout": {"values": [0.0, 0.1], "when": {"r": {"min": 64}}},
        "weight_decay": {"values": [0.0, 0.1], "when": {"target_modules": "mlp", "r": [4]}},
    })  # fmt: skip
    assert study.active("lora_dropout", {"r": 64})
    assert not study.active("lora_dropout", {"r": 4})
    assert not study.active("lora_dropout", {})
    assert study.active("weight_decay", {"target_modules": "mlp", "r": 4})
    assert not study.active("weight_decay", {"target_modules": ("q", "v"), "r": 4})


@pytest.mark.parametrize("condition", [{}, {"values": [1], "min": 1}, {"min": 2, "max": 1}])
def test_conditions_that_make_no_sense_are_refused(condition: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Condition.model_validate(condition)


def test_a_range_condition_never_holds_for_text() -> None:
    assert not Condition(min=1).holds("2")
    assert not Condition(max=9).holds((1, 2))


def test_numbers_take_the_type_of_their_setting() -> None:
    sweep = spec({
        "weight_decay": {"min": 0, "max": 1}, "alpha_ratio": {"values": [1, 2]}, "r": {"min": 2, "max": 8},
    }).sweep  # fmt: skip
    assert not sweep.parameters["weight_decay"].is_integer
    assert all(type(value) is float for value in sweep.parameters["alpha_ratio"].values or ())
    assert sweep.parameters["r"].is_integer
    assert type(sweep.parameters["r"].min) is int


@pytest.mark.parametrize(
    "parameter",
    [
        {},
        {"values": []},
        {"values": [1, 1]},
        {"values": [1], "min": 0},
        {"values": [1], "log": True},
        {"min": 1},
        {"min": 1, "max": 1},
        {"min": 0, "max": 1, "log": True},
        {"min": 1, "max": 9, "log": True, "step": 2},
        {"min": 1, "max": 9, "step": 0},
        {"min": True, "max": 9},
        {"min": float("nan"), "max": 1.0},
        {"valus": [1]},
    ],
)
def test_parameters_that_make_no_sense_are_refused(parameter: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Parameter.model_validate(parameter)


def test_true_and_one_are_different_values() -> None:
    assert Parameter.model_validate({"values": [True, 1]}).values == (True, 1)


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ({"n_trials": 2, "parameters": {"os.system": {"values": [1]}}}, "no key that can be searched"),
        ({"n_trials": 2, "parameters": {"rank": {"values": [1]}}}, "did you mean r?"),
        ({"parameters": {"r": {"values": [1]}}}, "needs it"),
        ({"sampler": "grid", "parameters": {"r": {"min": 1, "max": 4}}}, "grid needs"),
        (
            {"n_trials": 2, "metric": [{"name": "eval_loss"}] * 2, "parameters": {"r": {"values": [1]}}},
            "must differ",
        ),
    ],
)
def test_sweeps_that_make_no_sense_are_refused(sweep: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SweepSettings.model_validate(sweep)
    assert reason in str(refused.value)


def test_a_metric_may_be_a_name_a_mapping_or_a_list() -> None:
    parameters = {"r": {"values": [1]}}
    for metric in ("train_seconds", {"name": "train_seconds"}, [{"name": "train_seconds"}]):
        sweep = SweepSettings.model_validate({"n_trials": 1, "parameters": parameters, "metric": metric})
        assert [one.name for one in sweep.metric] == ["train_seconds"]
        assert not sweep.multi_objective


def test_the_metric_forgetting_needs_its_dataset() -> None:
    with pytest.raises(ValidationError, match=r"data\.forgetting"):
        spec({}, sweep={"n_trials": 1, "metric": "forgetting", "parameters": {"r": {"values": [1]}}})


@given(st.text(max_size=120))
def test_a_study_name_is_a_safe_folder_name(name: str) -> None:
    try:
        accepted = spec({"r": {"values": [1]}}, study_name=name).study_name
    except ValidationError:
        return
    assert accepted
    assert not set(accepted) & set("/\\\0\n <>:")
    assert accepted[0] not in ".-"
    assert ".." not in accepted


def test_a_metric_of_answers_is_searched_for_only_where_it_is_measured() -> None:
    parameters = {"r": {"values": [4, 8]}}
    sweep = {"n_trials": 4, "parameters": parameters, "metric": "exact_match"}
    with pytest.raises(ValidationError, match=r"exact_match is measured only where evaluation\.metrics asks for it"):
        spec(parameters, sweep=sweep)
    study = spec(parameters, sweep=sweep, evaluation={"metrics": ["exact_match"]})
    assert study.sweep.metric[0].goal == "maximize"
    assert study.sweep.judged.name == "exact_match"
    assert study.trial_config({"r": 4}).evaluation.max_new_tokens == 64


def test_a_study_without_metrics_is_stored_as_it_always_was() -> None:
    study = spec({"r": {"values": [4, 8]}})
    assert "evaluation" not in study.model_dump(mode="json")
    assert "evaluation" not in study.trial_config({"r": 4}).model_dump(mode="json")
    assert study.trial_config({"r": 4}) == study.trial_config({"r": 4}).changed()
