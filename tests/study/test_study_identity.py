from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.study.data_settings import DataSettings
from lora_lab.study.identity import trial_identity
from lora_lab.study.settings import TrainingSettings, TrialConfig

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj")


def identity(modules: tuple[str, ...] = MODULES, **sections: dict[str, Any]) -> str:
    base: dict[str, dict[str, Any]] = {
        "model": {"model_name_or_path": "m"},
        "data": {"train": "t"},
        "training": {},
        "lora": {},
    }
    return trial_identity(
        TrialConfig.model_validate({name: base[name] | sections.get(name, {}) for name in base}), modules
    )


KEPT: dict[str, Any] = {"training": {"load_best_model_at_end": True}}
EQUIVALENT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"lora": {"target_modules": "attention"}}, {"lora": {"target_modules": ("q_proj",), "layers": (0, 1)}}),
    (
        {"lora": {"target_parameters": "experts"}},
        {"lora": {"target_parameters": ("experts.down_proj", "gate_up_proj")}},
    ),
    ({"lora": {"r": 16, "lora_alpha": 8.0, "use_rslora": True}}, {"lora": {"r": 16, "lora_alpha": 32.0}}),
    ({"lora": {"r": 8, "alpha_ratio": 0.5}}, {"lora": {"r": 8, "lora_alpha": 4.0}}),
    ({"lora": {"r": 8}}, {"lora": {"r": 8, "alpha_ratio": 2.0}}),
    ({"training": {"logging_steps": 1}}, {"training": {"logging_steps": 7, "eval_steps": 3}}),
    (
        {"training": {"lr_scheduler_type": "constant"}},
        {"training": {"lr_scheduler_type": "constant_with_warmup"}},
    ),
]

DIFFERENT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"lora": {"r": 8}}),
    ({}, {"lora": {"lora_alpha": 33.0}}),
    ({}, {"lora": {"lora_dropout": 0.1}}),
    ({}, {"lora": {"init_lora_weights": "gaussian"}}),
    ({}, {"lora": {"use_rslora": True}}),
    ({}, {"training": {"seed": 1}}),
    ({}, {"training": {"learning_rate": 1e-3}}),
    ({}, {"training": {"lr_scheduler_type": "linear"}}),
    ({}, {"training": {"load_best_model_at_end": True}}),
    (KEPT, {"training": {**KEPT["training"], "eval_steps": 3}}),
    (KEPT, {"training": {**KEPT["training"], "early_stopping_patience": 3}}),
    ({}, {"training": {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}}),
    ({}, {"model": {"quantization": "nf4"}}),
    ({}, {"data": {"max_length": 64}}),
    ({}, {"data": {"eval": 0.2}}),
]


@pytest.mark.parametrize(("one", "other"), EQUIVALENT)
def test_equivalent_configurations_are_one(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert identity(**one) == identity(**other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_configurations_are_two(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert identity(**one) != identity(**other)


def test_modules_count_as_a_set() -> None:
    assert identity(MODULES) == identity(MODULES[::-1])
    assert identity(MODULES) != identity(MODULES[:1])


@given(st.integers(1, 4096), st.sampled_from([0.1, 0.5, 1.0, 1.5, 3.0, 7.0, 16.0, 32.0, 48.0, 256.0]))
def test_rslora_at_the_same_scaling_is_the_same(r: int, alpha: float) -> None:
    plain = {"r": r, "lora_alpha": alpha * math.sqrt(r)}
    assert identity(lora={"r": r, "lora_alpha": alpha, "use_rslora": True}) == identity(lora=plain)


@given(st.integers(1, 4096), st.sampled_from([0.125, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0]))
def test_a_ratio_and_its_alpha_are_the_same(r: int, ratio: float) -> None:
    assert identity(lora={"r": r, "alpha_ratio": ratio}) == identity(lora={"r": r, "lora_alpha": ratio * r})


def test_trials_from_before_the_best_checkpoint_keep_their_identity() -> None:
    dumped = TrainingSettings().model_dump()
    names = ("load_best_model_at_end", "metric_for_best_model", "early_stopping_patience", "early_stopping_threshold")
    assert not dumped.keys() & set(names)
    kept = TrainingSettings(load_best_model_at_end=True, early_stopping_patience=2)
    assert TrainingSettings.model_validate_json(kept.model_dump_json()) == kept


def test_trials_from_before_a_key_of_data_existed_keep_their_identity() -> None:
    """Their stored settings, checkpoints and shared results are found by what the settings dump to."""
    data = DataSettings.model_validate({"train": "t", "forgetting": "f"})
    dataset = {"name": None, "split": None, "max_examples": None}
    assert data.model_dump() == {
        "train": {"path": "t", **dataset},
        "eval": 0.1,
        "forgetting": {"path": "f", **dataset},
        "max_train_examples": None,
        "max_length": 512,
        "packing": False,
    }
    for more in (
        {"skip_invalid": True},
        {"columns": {"text": "body"}},
        {"train": ({"path": "a/b", "revision": "v1"}, {"path": "c", "weight": 2.0})},
    ):
        changed = DataSettings.model_validate({"train": "t", **more})
        assert changed != data
        assert DataSettings.model_validate(changed.model_dump()) == changed
        assert DataSettings.model_validate_json(changed.model_dump_json()) == changed
