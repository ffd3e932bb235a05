"""The values of parameters, and the choices of them that a study may ask for."""

from __future__ import annotations

from decimal import Decimal
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from lora_lab.study.space import choices, combinations, corners, deciding, ends, options, representatives
from lora_lab.study.spec import StudySpec
from lora_lab.study.sweep import Parameter


def spec(parameters: dict[str, Any], **settings: Any) -> StudySpec:
    return StudySpec.model_validate({
        "study_name": "s", "model": {"model_name_or_path": "m"}, "data": {"train": "t"},
        "sweep": {"n_trials": 4, "parameters": parameters}, **settings,
    })  # fmt: skip


@st.composite
def decimals(draw: st.DrawFn) -> tuple[Decimal, Decimal, Decimal]:
    """`min`, `max` and `step` with a few digits after the point, as people write them."""
    digits = draw(st.integers(0, 4))
    low, span, step = draw(st.integers(0, 500)), draw(st.integers(1, 3000)), draw(st.integers(1, 400))
    unit = Decimal(1).scaleb(-digits)
    return low * unit, (low + span) * unit, step * unit


@given(decimals())
def test_the_grid_of_a_range_is_exact_and_that_of_optuna(bounds: tuple[Decimal, Decimal, Decimal]) -> None:
    low, high, step = bounds
    parameter = Parameter(min=float(low), max=float(high), step=float(step))
    expected = [low + index * step for index in range(int((high - low) // step) + 1)]
    assert options(parameter) == list(map(float, expected))
    distribution = FloatDistribution(float(low), float(expected[-1]), step=float(step))
    assert all(distribution._contains(value) for value in map(float, expected))
    assert tuple(ends(parameter)) == (float(low), float(expected[-1]))


@given(st.integers(1, 50), st.integers(1, 100), st.none() | st.integers(1, 30))
def test_the_grid_of_whole_numbers_is_that_of_optuna(low: int, span: int, step: int | None) -> None:
    parameter = Parameter(min=low, max=low + span, step=step)
    distribution = IntDistribution(low, low + span - span % (step or 1), step=step or 1)
    assert list(options(parameter)) == [n for n in range(low, low + span + 1) if distribution._contains(n)]
    assert all(type(value) is int for value in options(parameter))
    assert ends(parameter) == (low, low + span if step is None else options(parameter)[-1])


def test_values_stand_in_the_order_of_the_study_file() -> None:
    parameter = Parameter(values=(8, 2, 4))
    assert options(parameter) == ends(parameter) == (8, 2, 4)


def test_a_range_is_represented_by_its_steps_or_its_ends() -> None:
    study = spec({
        "r": {"min": 2, "max": 64, "log": True}, "warmup_steps": {"min": 0, "max": 9, "step": 4},
        "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}, "lora_dropout": {"values": [0.1, 0.0]},
    }, training={"lr_scheduler_type": "linear"})  # fmt: skip
    found = {name: list(representatives(study, name)) for name in study.sweep.parameters}
    assert found == {
        "r": [2, 64],
        "warmup_steps": [0, 4, 8],
        "learning_rate": [1e-4, 1e-2],
        "lora_dropout": [0.1, 0.0],
    }


@pytest.mark.parametrize(
    ("name", "bounds", "condition", "expected"),
    [
        ("r", {"min": 2, "max": 64}, {"min": 8}, [2, 8, 64]),
        ("r", {"min": 2, "max": 64, "log": True}, {"min": 8, "max": 16.5}, [2, 8, 16, 64]),
        ("r", {"min": 2, "max": 64, "step": 10}, {"min": 8, "max": 33}, [2, 12, 32, 62]),
        ("r", {"min": 2, "max": 64}, [7, 9, 90], [2, 7, 9, 64]),
        ("r", {"min": 2, "max": 64}, {"min": 100}, [2, 64]),
        ("learning_rate", {"min": 0.001, "max": 0.1}, {"min": 0.01, "max": 0.02}, [0.001, 0.01, 0.02, 0.1]),
        ("learning_rate", {"min": 0.001, "max": 0.1}, [0.05, 0.5], [0.001, 0.05, 0.1]),
        ("learning_rate", {"min": 0.001, "max": 0.1}, {"max": 0.0001}, [0.001, 0.1]),
        ("alpha_ratio", {"min": 0.5, "max": 4}, [1, 2.5], [0.5, 1.0, 2.5, 4.0]),
        ("r", {"values": [2, 64]}, {"min": 8}, [2, 64]),
    ],
    ids=str,
)
def test_corners_are_the_ends_and_where_conditions_begin_and_end(
    name: str, bounds: dict[str, Any], condition: Any, expected: list[float]
) -> None:
    study = spec({name: bounds, "weight_decay": {"values": [0.0, 0.1], "when": {name: condition}}})
    assert list(corners(study, name)) == expected


def test_what_is_searched_between_the_ends_of_a_range_is_among_the_combinations() -> None:
    study = spec({
        "r": {"min": 2, "max": 64}, "use_dora": {"values": [True], "when": {"r": {"min": 8, "max": 16}}},
    })  # fmt: skip
    assert list(combinations(study, ["r", "use_dora"])) == [
        {"r": 2},
        {"r": 8, "use_dora": True},
        {"r": 16, "use_dora": True},
        {"r": 64},
    ]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
    st.integers(1, 9),
)
def test_combinations_are_the_product_less_what_is_not_active(ranks: list[int], steps: list[int], least: int) -> None:
    study = spec({
        "r": {"values": ranks}, "gradient_accumulation_steps": {"values": steps, "when": {"r": {"min": least}}},
    })  # fmt: skip
    every = [
        {"r": r, "gradient_accumulation_steps": step} if r >= least else {"r": r} for r, step in product(ranks, steps)
    ]
    expected = [choice for index, choice in enumerate(every) if choice not in every[:index]]
    assert list(combinations(study, ["r", "gradient_accumulation_steps"])) == expected


def test_what_decides_includes_the_conditions_of_conditions() -> None:
    study = spec({
        "seed": {"values": [0, 1]}, "r": {"values": [4, 8]}, "use_rslora": {"values": [True, False], "when": {"r": 8}},
        "lora_dropout": {"values": [0.0, 0.1], "when": {"use_rslora": True}},
    })  # fmt: skip
    assert deciding(study, ["lora_dropout", "layers"]) == ["r", "use_rslora", "lora_dropout"]
    assert deciding(study, ["layers"]) == []


def test_choices_are_the_searched_ends_or_the_fixed_value() -> None:
    study = spec(
        {
            "r": {"min": 4, "max": 8},
            "num_train_epochs": {"values": [1, 2], "when": {"r": 8}},
            "weight_decay": {"values": [0.0, 0.1], "when": {"r": 8}},
        },
        training={"num_train_epochs": 5},
    )
    assert choices(study, "r") == (4, 8)
    assert choices(study, "num_train_epochs") == (1, 2, 5)
    assert choices(study, "weight_decay") == (0.0, 0.1)
    assert choices(study, "max_steps") == (None,)
    assert choices(study, "quantization") == ("none",)
