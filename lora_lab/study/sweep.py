"""The sweep: which parameters vary, how they are searched, and what counts as better."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from lora_lab.study.settings import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    Settings,
    TrainingSettings,
    _list_to_tuple,
)

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]
"""A value that a parameter can take: a scalar, or a tuple (a list of module names, of layers)."""


def _lists_to_tuples(value: Any) -> Any:
    return tuple(_list_to_tuple(item) for item in value) if isinstance(value, list) else value


Values = Annotated[tuple[Value, ...], BeforeValidator(_lists_to_tuples), Field(min_length=1)]

OBJECTIVES = ("eval_loss", "forgetting", "trainable_params", "peak_memory_bytes", "train_seconds")

SEARCHABLE: dict[str, str] = {
    "quantization": "model",
    "double_quant": "model",
    "max_length": "data",
    **dict.fromkeys(TrainingSettings.model_fields, "training"),
    **dict.fromkeys(LoraSettings.model_fields, "lora"),
}
"""Every name that may stand under `parameters`, and the section of the study file that it belongs to."""

SECTIONS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "lora": LoraSettings,
}


class Condition(Settings):
    """When a conditional parameter is searched: the other parameter lies in a range or a set."""

    values: Values | None = None
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _values_or_range(self) -> Condition:
        if (self.values is None) == (self.min is None and self.max is None):
            raise ValueError("give `values`, or `min` and/or `max`")
        return self

    def holds(self, value: Value) -> bool:
        """Whether the other parameter's value satisfies the condition."""
        if self.values is not None:
            return value in self.values
        if isinstance(value, (str, tuple)):
            return False
        return (self.min is None or value >= self.min) and (self.max is None or value <= self.max)


def _to_condition(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        key: condition
        if isinstance(condition, dict)
        else {"values": condition if isinstance(condition, list) else [condition]}
        for key, condition in value.items()
    }


class Parameter(Settings):
    """One searched parameter: a set of `values`, or a range from `min` to `max`."""

    values: Values | None = None
    min: int | float | None = None
    max: int | float | None = None
    log: bool = False
    step: int | float | None = None
    when: Annotated[dict[str, Condition], BeforeValidator(_to_condition)] = Field(default_factory=dict)
    """Searched only where these conditions hold; elsewhere the fixed value of the study file applies."""

    @model_validator(mode="after")
    def _values_or_range(self) -> Parameter:
        if self.values is not None:
            if self.min is not None or self.max is not None or self.log or self.step is not None:
                raise ValueError("give `values`, or `min` and `max` (with `log` or `step`), not both")
            if len(set(map(repr, self.values))) < len(self.values):
                raise ValueError(f"values must differ, but got {list(self.values)}")
            return self
        if self.min is None or self.max is None:
            raise ValueError("give `values`, or both `min` and `max`")
        if self.min >= self.max:
            raise ValueError(f"min < max must hold, but got min={self.min}, max={self.max}")
        if self.log and self.min <= 0:
            raise ValueError(f"log needs min > 0, but min is {self.min}")
        if self.log and self.step is not None:
            raise ValueError("give `log` or `step`, not both")
        if self.step is not None and self.step <= 0:
            raise ValueError(f"step must be positive, but is {self.step}")
        return self

    @property
    def is_integer(self) -> bool:
        """Whether a range runs over whole numbers."""
        return all(isinstance(bound, int) for bound in (self.min, self.max, self.step or 1))


class Metric(Settings):
    """What is optimized."""

    name: Literal["eval_loss", "forgetting", "trainable_params", "peak_memory_bytes", "train_seconds"]
    goal: Literal["minimize", "maximize"] = "minimize"


def _one_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, dict) else value


class Confirm(Settings):
    """Retrain the best trials with fresh seeds, so that the winner's value is not its luck."""

    top: int = Field(default=3, ge=1)
    seeds: int = Field(default=3, ge=1)


class Verdict(Settings):
    """What counts as a tie."""

    margin: float = Field(default=0.01, ge=0, lt=1)
    """Share of the best trial's gain over the base within which a cheaper configuration is as good."""


class SweepSettings(Settings):
    """How the study is searched."""

    metric: Annotated[tuple[Metric, ...], BeforeValidator(_one_to_tuple), Field(min_length=1)] = (
        Metric(name="eval_loss"),
    )
    sampler: Literal["tpe", "grid", "random", "qmc", "gp", "nsga2"] = "tpe"
    pruner: Literal["asha", "hyperband", "median", "none"] = "asha"
    n_trials: Annotated[int, Field(ge=1)] | None = None
    """Trials in all; by default the whole grid for `sampler: grid`, otherwise required."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the sampler, not of the trials."""
    parameters: dict[str, Parameter] = Field(min_length=1)
    confirm: Confirm | None = None
    verdict: Verdict = Verdict()
    pack_size: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Trials that train at the same time; a number makes the whole study reproducible."""

    @model_validator(mode="after")
    def _consistent(self) -> SweepSettings:
        names = [metric.name for metric in self.metric]
        if len(set(names)) < len(names):
            raise ValueError(f"metric names must differ, but got {names}")
        if self.multi_objective and self.pruner != "none":
            raise ValueError(
                f"a study of {len(names)} metrics cannot prune yet; set `pruner: none` (it is {self.pruner})"
            )
        if self.sampler == "grid":
            open_ranges = [
                name
                for name, parameter in self.parameters.items()
                if parameter.values is None and parameter.step is None
            ]
            if open_ranges:
                raise ValueError(
                    f"sampler: grid needs `values` or `step` for every parameter, but {open_ranges[0]} has neither"
                )
        elif self.n_trials is None:
            raise ValueError(f"sampler: {self.sampler} needs n_trials")
        return self

    @property
    def multi_objective(self) -> bool:
        """Whether there is more than one metric."""
        return len(self.metric) > 1
