"""Which configurations stand for the places where a study puts adapters."""

from __future__ import annotations

import pytest

from lora_lab.common.errors import InputError
from lora_lab.planning.target_checks import check_targets, expert_notes, target_examples
from lora_lab.study.settings import LoraSettings
from lora_lab.study.spec import StudySpec
from lora_lab.study.targets import ExpertShape, LinearMap, LinearShape

SHAPES = {f"model.layers.{layer}.mlp.up_proj": LinearShape(8, 16) for layer in range(2)} | {
    "lm_head": LinearShape(8, 64)
}
LINEARS = LinearMap(shapes=SHAPES, head="lm_head", num_layers=2, total_parameters=0)


def study(parameters: dict[str, object]) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study_name": "placed",
            "model": {"model_name_or_path": "base"},
            "data": {"train": "text.jsonl"},
            "lora": {"r": 4},
            "sweep": {"n_trials": 4, "parameters": parameters},
        }
    )


def examples(parameters: dict[str, object]) -> list[tuple[object, object, int]]:
    found = target_examples(study(parameters))
    return [(config.lora.target_modules, config.lora.layers, config.lora.r) for config in found]


def test_every_place_has_one_example_of_the_highest_rank():
    parameters = {
        "r": {"values": [2, 8, 4]},
        "target_modules": {"values": ["mlp", ["up_proj"]]},
        "layers": {"values": ["all", [0]]},
        "learning_rate": {"min": 1e-4, "max": 1e-2},
    }
    assert examples(parameters) == [
        ("mlp", "all", 8),
        ("mlp", (0,), 8),
        (("up_proj",), "all", 8),
        (("up_proj",), (0,), 8),
    ]


def test_a_study_that_places_all_alike_has_one_example():
    assert examples({"learning_rate": {"values": [1e-3]}}) == [("all-linear", "all", 4)]


def test_of_a_range_the_highest_rank_that_a_trial_can_have():
    assert examples({"r": {"min": 2, "max": 9, "step": 3}}) == [("all-linear", "all", 8)]


def test_places_that_conditions_rule_out_are_not_tried():
    parameters = {
        "r": {"min": 2, "max": 64},
        "target_modules": {"values": ["all-linear", ["up_proj"]]},
        "layers": {"values": ["all", [7]], "when": {"target_modules": "all-linear", "r": {"min": 4, "max": 16}}},
    }
    assert sorted(map(str, examples(parameters))) == sorted(
        map(str, [("all-linear", "all", 64), ("all-linear", (7,), 16), (("up_proj",), "all", 64)])
    )


def test_what_only_a_condition_refers_to_stays_as_the_study_fixes_it():
    spec = study(
        {
            "quantization": {"values": ["nf4", "none"]},
            "target_modules": {"values": ["mlp"], "when": {"quantization": "nf4"}},
        }
    )
    assert {config.model.quantization for config in target_examples(spec)} == {"none"}


def test_fixed_values_of_what_is_searched_hinder_no_check():
    spec = study({"r": {"values": [3, 4]}, "init_lora_weights": {"values": [True, "gaussian"]}})
    spec = spec.model_copy(update={"lora": LoraSettings(r=4, init_lora_weights="orthogonal")})
    assert [config.lora.r for config in target_examples(spec)] == [4]


def test_a_rank_above_the_smaller_side_is_noted_and_a_missing_layer_refused():
    notes = check_targets(study({"r": {"values": [4, 12]}}), lambda _: LINEARS)
    assert [note.split(" matrices")[0] for note in notes] == ["r=12 is above the smaller side of 2 adapted"]
    with pytest.raises(InputError, match="layers 0 to 1, but got 7"):
        check_targets(study({"layers": {"values": ["all", [7]]}}), lambda _: LINEARS)


MIXTURE = LinearMap(
    shapes=SHAPES,
    head="lm_head",
    num_layers=2,
    total_parameters=2000,
    experts={f"model.layers.{layer}.mlp.experts.down_proj": ExpertShape(4, 8, 16) for layer in range(2)},
)


def test_experts_that_stay_frozen_are_told_with_what_trains_them():
    [note] = expert_notes(study({"r": {"values": [4]}}), MIXTURE)
    assert "the experts (experts.down_proj: 51% of the base) stay frozen in all trials" in note
    assert "`lora.target_parameters: experts` trains them too" in note
    assert note in check_targets(study({"r": {"values": [4]}}), lambda _: MIXTURE)
    assert expert_notes(study({"r": {"values": [4]}}), LINEARS) == []


def test_what_training_experts_takes_is_told():
    parameters = {"target_parameters": {"values": ["none", "experts"]}, "layers": {"values": [[0]]}}
    [note] = expert_notes(study(parameters), MIXTURE)
    assert note.startswith("target_parameters trains experts (experts.down_proj: 26% of the base) on the reference eng")
    assert examples(parameters) == [("all-linear", (0,), 4)] * 2
    told = check_targets(study(parameters), lambda _: MIXTURE)
    assert any("target_modules all-linear with target_parameters experts adapts" in text for text in told)
