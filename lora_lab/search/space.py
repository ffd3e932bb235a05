"""The study's parameters as Optuna's distributions, and back."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

if TYPE_CHECKING:
    from optuna.trial import Trial

    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Parameter, Scalar, Value

LIST_MARK = "["


def to_choice(value: Value) -> Scalar:
    """A value as Optuna stores it: scalars as they are, a list as its JSON text."""
    return json.dumps(list(value)) if isinstance(value, tuple) else value


def from_choice(choice: Scalar) -> Value:
    """The value behind what Optuna stores."""
    if isinstance(choice, str) and choice.startswith(LIST_MARK):
        return tuple(json.loads(choice))
    return choice


def distribution(parameter: Parameter) -> BaseDistribution:
    """Where Optuna draws a parameter from."""
    if parameter.values is not None:
        return CategoricalDistribution([to_choice(value) for value in parameter.values])
    assert parameter.min is not None
    assert parameter.max is not None
    if parameter.is_integer:
        step = 1 if parameter.step is None else int(parameter.step)
        return IntDistribution(int(parameter.min), int(parameter.max), log=parameter.log, step=step)
    return FloatDistribution(float(parameter.min), float(parameter.max), log=parameter.log, step=parameter.step)


def suggest(trial: Trial, spec: StudySpec) -> dict[str, Value]:
    """Draw the parameters that are active, in the order of the study file; conditions see those above them."""
    chosen: dict[str, Value] = {}
    for name, parameter in spec.sweep.parameters.items():
        if spec.active(name, chosen):
            chosen[name] = _draw(trial, name, distribution(parameter))
    return chosen


def _draw(trial: Trial, name: str, among: BaseDistribution) -> Value:
    match among:
        case CategoricalDistribution():
            drawn = trial.suggest_categorical(name, among.choices)
            assert drawn is not None
            return from_choice(drawn)
        case IntDistribution():
            return trial.suggest_int(name, among.low, among.high, step=among.step, log=among.log)
        case FloatDistribution():
            return trial.suggest_float(name, among.low, among.high, step=among.step, log=among.log)
    raise AssertionError(among)


def grid(spec: StudySpec) -> dict[str, list[Scalar]]:
    """Every parameter's values for the grid sampler; ranges have a step (`SweepSettings` sees to it)."""
    return {name: _levels(distribution(parameter)) for name, parameter in spec.sweep.parameters.items()}


def _levels(among: BaseDistribution) -> list[Scalar]:
    match among:
        case CategoricalDistribution():
            return [choice for choice in among.choices if choice is not None]
        case IntDistribution():
            return list(range(among.low, among.high + 1, among.step))
        case FloatDistribution(step=float(step)):
            count = round((among.high - among.low) / step) + 1
            return [among.low + index * step for index in range(count)]
    raise AssertionError(among)
