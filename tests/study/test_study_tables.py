"""Every schedule and every initialization has a row in its table, and what reads the tables takes every row."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from lora_lab.analysis.audit import audit
from lora_lab.study.engines import engine_for
from lora_lab.study.identity import trial_identity
from lora_lab.study.initializations import INITIALIZATIONS, InitializationName
from lora_lab.study.schedules import SCHEDULES, ScheduleName
from lora_lab.study.settings import TrainingSettings
from lora_lab.study.spec import StudySpec
from lora_lab.study.trajectory import shares, trajectory_identity, trajectory_note

BOOL, LITERAL = get_args(InitializationName)
MODULES = ("model.layers.0.mlp.up_proj",)


def spec(parameters: dict[str, Any], **sections: dict[str, Any]) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study_name": "x",
            "model": {"model_name_or_path": "m", "dtype": "float32"},
            "data": {"train": "t"},
            "sweep": {"n_trials": 3, "parameters": parameters, "confirm": {"top": 1, "seeds": 2}},
        }
        | sections
    )


def test_the_tables_are_whole() -> None:
    assert set(SCHEDULES) == set(get_args(ScheduleName))
    assert BOOL is bool
    assert set(INITIALIZATIONS) == {True, False, *get_args(LITERAL)}


@pytest.mark.parametrize("name", SCHEDULES)
def test_settings_take_a_schedule_with_what_it_has(name: ScheduleName) -> None:
    facts = SCHEDULES[name]
    assert TrainingSettings(lr_scheduler_type=name).schedule is facts
    for has, settings in (
        (facts.has_warmup, {"warmup_steps": 3}),
        (facts.has_warmup, {"warmup_ratio": 0.1}),
        (facts.has_decay, {"decay_steps": 3}),
        (facts.has_decay, {"decay_ratio": 0.1}),
    ):
        if has:
            TrainingSettings.model_validate({"lr_scheduler_type": name, **settings})
        else:
            with pytest.raises(ValidationError, match=name):
                TrainingSettings.model_validate({"lr_scheduler_type": name, **settings})


@pytest.mark.parametrize("name", SCHEDULES)
def test_trajectories_and_the_audit_read_a_schedule(name: ScheduleName) -> None:
    facts = SCHEDULES[name]
    study = spec({"num_train_epochs": {"values": [1, 3]}}, training={"lr_scheduler_type": name})
    one, three = (study.trial_config({"num_train_epochs": epochs}) for epochs in (1, 3))
    assert shares(three.training) == facts.shares
    identities = {trajectory_identity(config, MODULES) for config in (one, three)}
    assert len(identities) == 1
    assert (identities == {None}) == (facts.shares == "nothing")
    note = trajectory_note(study)
    assert note is not None
    assert ("read off" in note, "branch off" in note) == (facts.shares == "all", facts.shares == "to the decay")
    pruning = [one for one in audit(study) if one.kind == "schedule_pruning"]
    assert bool(pruning) == facts.depends_on_length
    assert all(f"under {name} the learning rate" in one.sentence for one in pruning)


@pytest.mark.parametrize("name", [name for name, facts in SCHEDULES.items() if not facts.has_warmup])
def test_a_warmup_of_no_steps_makes_the_same_training(name: ScheduleName) -> None:
    with_warmup = SCHEDULES[name].with_warmup
    study = spec({"lr_scheduler_type": {"values": [name, with_warmup]}})
    assert with_warmup is not None
    plain, warmed = (study.trial_config({"lr_scheduler_type": one}) for one in (name, with_warmup))
    assert trial_identity(plain, MODULES) == trial_identity(warmed, MODULES)
    assert trial_identity(warmed.changed(training={"warmup_steps": 2}), MODULES) != trial_identity(warmed, MODULES)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_settings_take_an_initialization_where_it_can_be_had(name: InitializationName) -> None:
    facts = INITIALIZATIONS[name]
    config = spec({"r": {"values": [4]}}, lora={"init_lora_weights": name}).trial_config({})
    assert config.lora.initialization is facts
    assert (config.lora.loftq is not None) == (name == "loftq")
    assert engine_for(config).name == ("reference" if facts.changes_base else "packed")
    assert facts.changes_base or not facts.is_convertible
    refused = [(facts.needs_even_rank, {"lora": {"r": 3}})]
    refused += [(facts.changes_base, {"model": {"quantization": one}}) for one in ("int8", "nf4", "fp4")]
    for is_refused, change in refused:
        if is_refused:
            with pytest.raises(ValidationError, match=str(name)):
                config.changed(**change)
        else:
            config.changed(**change)


@pytest.mark.parametrize("name", INITIALIZATIONS)
def test_the_audit_says_where_ranks_start_differently(name: InitializationName) -> None:
    parameters = {"r": {"values": [4, 8]}, "learning_rate": {"min": 1e-4, "max": 1e-2}}
    notes = audit(spec(parameters, lora={"init_lora_weights": name}))
    expected = ["rank_dependent_init"] if INITIALIZATIONS[name].rank_dependence else []
    assert [note.kind for note in notes] == expected
    assert all(f"init_lora_weights: {name} " in note.sentence for note in notes)


def test_a_changed_configuration_is_one_that_a_trial_can_have() -> None:
    config = spec({"r": {"values": [4]}}, lora={"layers": [0, 1]}).trial_config({"r": 4})
    other = config.changed(training={"seed": 3}, lora={"r": 8})
    assert (other.training.seed, other.lora.r, other.lora.layers) == (3, 8, (0, 1))
    assert other.changed(training={"seed": 0}, lora={"r": 4}) == config
    assert hash(other.changed(training={"seed": 0}, lora={"r": 4})) == hash(config)
    for change in ({"training": {"seed": -1}}, {"training": {"sed": 1}}, {"data": {"max_length": 1}}):
        with pytest.raises(ValidationError):
            config.changed(**change)
