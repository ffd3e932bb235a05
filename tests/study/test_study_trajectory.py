"""Which runs of fewer epochs a run contains."""

from __future__ import annotations

from typing import Any

import pytest

from lora_lab.study.settings import TrainingSettings
from lora_lab.study.spec import StudySpec
from lora_lab.study.trajectory import shared_rates, shares, shorter_choices, trajectory_identity, trajectory_note

MODULES = ("model.layers.0.mlp.up_proj",)
SHARED: list[dict[str, Any]] = [
    {},
    {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 10},
    {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 10},
    {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.2},
]
APART: list[dict[str, Any]] = [
    {"lr_scheduler_type": "linear"},
    {"lr_scheduler_type": "cosine", "warmup_steps": 10},
    {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1},
    {"lr_scheduler_type": "warmup_stable_decay", "warmup_ratio": 0.1},
    {"max_steps": 10},
    {"eval_steps": 10},
]


def spec(parameters: dict[str, Any], **training: Any) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study_name": "x",
            "model": {"model_name_or_path": "m"},
            "data": {"train": "t"},
            "training": training,
            "sweep": {"sampler": "random", "n_trials": 3, "parameters": parameters},
        }
    )


def epochs_of(study: StudySpec, chosen: dict[str, Any]) -> list[Any]:
    return [choice["num_train_epochs"] for choice in shorter_choices(study, chosen)]


@pytest.mark.parametrize("training", SHARED, ids=str)
def test_runs_of_fewer_epochs_are_one_trajectory(training: dict[str, Any]) -> None:
    study = spec({"num_train_epochs": {"values": [1, 2, 3]}, "r": {"values": [2, 4]}}, **training)
    one, three, other = (study.trial_config({"num_train_epochs": e, "r": r}) for e, r in ((1, 2), (3, 2), (3, 4)))
    assert shares(one.training) == ("to the decay" if "decay" in one.training.lr_scheduler_type else "all")
    assert trajectory_identity(one, MODULES) == trajectory_identity(three, MODULES) is not None
    assert trajectory_identity(other, MODULES) != trajectory_identity(three, MODULES)
    assert epochs_of(study, {"num_train_epochs": 3, "r": 2}) == [1, 2]


@pytest.mark.parametrize("training", APART, ids=str)
def test_where_the_rate_or_the_evaluations_know_the_length_there_is_none(training: dict[str, Any]) -> None:
    study = spec({"num_train_epochs": {"values": [1, 2, 3]}}, **training)
    assert shares(TrainingSettings(**training)) == "nothing"
    assert trajectory_identity(study.trial_config({"num_train_epochs": 3}), MODULES) is None
    assert epochs_of(study, {"num_train_epochs": 3}) == []


@pytest.mark.parametrize("training", [{"max_steps": 10}, {"eval_steps": 10}], ids=str)
def test_rates_are_shared_also_where_evaluations_are_not(training: dict[str, Any]) -> None:
    assert shared_rates(TrainingSettings(**training)) == "all"
    assert shared_rates(TrainingSettings(lr_scheduler_type="cosine", **training)) == "nothing"


def test_the_schedule_may_be_searched() -> None:
    study = spec(
        {"num_train_epochs": {"values": [1, 3]}, "lr_scheduler_type": {"values": ["constant", "cosine"]}},
    )
    assert epochs_of(study, {"num_train_epochs": 3, "lr_scheduler_type": "constant"}) == [1]
    assert epochs_of(study, {"num_train_epochs": 3, "lr_scheduler_type": "cosine"}) == []


def test_a_range_has_all_its_steps() -> None:
    study = spec({"num_train_epochs": {"min": 2, "max": 9, "step": 3}})
    assert epochs_of(study, {"num_train_epochs": 8}) == [2, 5]
    assert epochs_of(spec({"num_train_epochs": {"min": 1, "max": 9, "log": True}}), {"num_train_epochs": 4}) == [
        1,
        2,
        3,
    ]


def test_fixed_epochs_have_none() -> None:
    assert epochs_of(spec({"r": {"values": [2, 4]}}, num_train_epochs=3), {"r": 2}) == []


def test_epochs_that_change_what_is_searched_are_another_configuration() -> None:
    study = spec(
        {
            "num_train_epochs": {"values": [1, 2, 3]},
            "lora_dropout": {"values": [0.0, 0.1], "when": {"num_train_epochs": {"min": 2}}},
        }
    )
    assert epochs_of(study, {"num_train_epochs": 3, "lora_dropout": 0.1}) == [2]


def test_epochs_that_are_searched_only_sometimes() -> None:
    study = spec(
        {"r": {"values": [2, 4]}, "num_train_epochs": {"values": [1, 2], "when": {"r": 4}}}, num_train_epochs=5
    )
    assert epochs_of(study, {"r": 2}) == []
    assert epochs_of(study, {"r": 4, "num_train_epochs": 2}) == [1]


EPOCHS = {"num_train_epochs": {"values": [1, 2, 3]}}
BOTH = {"lr_scheduler_type": {"values": ["constant", "linear"]}}


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (spec(EPOCHS), ["read off the longest"]),
        (
            spec(EPOCHS, lr_scheduler_type="warmup_stable_decay"),
            ["branch off the longest one where their decay begins"],
        ),
        (spec(EPOCHS, lr_scheduler_type="cosine"), ["trained apart", "cosine"]),
        (spec(EPOCHS, max_steps=4), ["trained apart", "max_steps is set"]),
        (spec(EPOCHS, lr_scheduler_type="constant_with_warmup", warmup_ratio=0.1), ["apart", "warmup_steps would"]),
        (spec({**EPOCHS, **BOTH}), ["read off", "under constant", "the others"]),
    ],
)
def test_it_is_said_in_words(study: StudySpec, words: list[str]) -> None:
    note = trajectory_note(study)
    assert note is not None
    assert all(word in note for word in words), note


def test_nothing_is_said_where_epochs_are_fixed() -> None:
    assert trajectory_note(spec({"r": {"values": [2, 4]}})) is None
