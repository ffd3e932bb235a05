"""The search space of a study in Optuna's terms.

Optuna stores categorical choices as JSON scalars, so a value that is a tuple (module names, layers) stands
there as its JSON text, readable in any dashboard, and is decoded by its position among the values.
"""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lora_lab.study.space import combinations

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Parameter, Scalar, Value

Distribution = CategoricalDistribution | IntDistribution | FloatDistribution


class SearchSpace:
    """The parameters of a study, chosen one after another because some depend on those above them."""

    def __init__(self, spec: StudySpec) -> None:
        self._spec = spec
        with warnings.catch_warnings():
            # Optuna lowers `max` to the last step below it, and says so; a grid in a study file may well be so.
            warnings.filterwarnings("ignore", message=".*not divisible by `step`", category=UserWarning)
            self._distributions = {name: _distribution(parameter) for name, parameter in spec.sweep.parameters.items()}

    def choose(self, trial: Trial) -> dict[str, Value]:
        """The values of a trial by parameter name; those already stored for it stay."""
        chosen: dict[str, Value] = {}
        for name, distribution in self._distributions.items():
            if self._spec.active(name, chosen):
                chosen[name] = self._value(name, _suggest(trial, name, distribution))
        return chosen

    def recorded(self, chosen: Mapping[str, Value]) -> tuple[dict[str, Scalar], dict[str, BaseDistribution]]:
        """A trial's values as Optuna stores them, and their distributions."""
        stored = {name: _label(value) for name, value in chosen.items()}
        return stored, {name: self._distributions[name] for name in chosen}

    def cells(self) -> Iterator[dict[str, Scalar]]:
        """Every cell of the grid, as Optuna stores it; parameters that are not active take no part."""
        for chosen in combinations(self._spec, list(self._distributions)):
            yield {name: _label(value) for name, value in chosen.items()}

    def _value(self, name: str, stored: Scalar) -> Value:
        values = self._spec.sweep.parameters[name].values
        return stored if values is None else values[[_label(value) for value in values].index(stored)]


def _label(value: Value) -> Scalar:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else value


def _distribution(parameter: Parameter) -> Distribution:
    if parameter.values is not None:
        return CategoricalDistribution([_label(value) for value in parameter.values])
    low, high, step = parameter.min, parameter.max, parameter.step
    assert low is not None
    assert high is not None
    if parameter.is_integer:
        return IntDistribution(int(low), int(high), log=parameter.log, step=1 if step is None else int(step))
    return FloatDistribution(low, high, log=parameter.log, step=step)


def _suggest(trial: Trial, name: str, distribution: Distribution) -> Scalar:
    match distribution:
        case CategoricalDistribution(choices=choices):
            chosen = trial.suggest_categorical(name, choices)
            assert chosen is not None, "a study file has no null among its values"
            return chosen
        case IntDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_int(name, low, high, step=step, log=log)
        case FloatDistribution(low=low, high=high, step=step, log=log):
            return trial.suggest_float(name, low, high, step=step, log=log)
