"""The sweep: which parameters vary, how they are searched, and what counts as better."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from lora_lab.study.data_settings import DataSettings
from lora_lab.study.measures import EVAL_LOSS, MEASURES, TRAINABLE_PARAMS, Goal, Measure, costs, objectives, tie_width
from lora_lab.study.section import RuleError, Settings, known, list_to_tuple
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings

Scalar = bool | int | float | str
Value = Scalar | tuple[Scalar, ...]
"""A value that a parameter can take: a scalar, or a tuple (a list of module names, of layers)."""


def _lists_to_tuples(value: Any) -> Any:
    return tuple(list_to_tuple(item) for item in value) if isinstance(value, list) else value


Values = Annotated[tuple[Value, ...], BeforeValidator(_lists_to_tuples), Field(min_length=1)]

SEARCHABLE: dict[str, str] = {
    "quantization": "model",
    "double_quant": "model",
    "max_length": "data",
    "packing": "data",
    "max_train_examples": "data",
    **dict.fromkeys(TrainingSettings.model_fields, "training"),
    **dict.fromkeys((name for name in LoraSettings.model_fields if name != "loftq_config"), "lora"),
}
"""Every name that may stand under `parameters`, and the section of the study file that it belongs to.

Of a whole section such as `loftq_config`, no list of values can be written there.
"""

OTHER_NAMES = {
    "alpha": "lora_alpha",
    "batch_size": "per_device_train_batch_size",
    "cutoff_len": "max_length",
    "dropout": "lora_dropout",
    "early_stop_interval": "early_stopping_patience",
    "early_stopping_steps": "early_stopping_patience",
    "epochs": "num_train_epochs",
    "init_lora": "init_lora_weights",
    "layers_to_transform": "layers",
    "lora_r": "r",
    "lora_rank": "r",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "lora_target_parameters": "target_parameters",
    "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type",
    "max_seq_length": "max_length",
    "method": "sampler",
    "micro_batch_size": "per_device_train_batch_size",
    "name": "study_name",
    "num_epochs": "num_train_epochs",
    "patience": "early_stopping_patience",
    "rank": "r",
    "sequence_len": "max_length",
    "trials": "n_trials",
}
"""What other tools call a key."""

SECTIONS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "lora": LoraSettings,
}


def _searchable(name: str) -> str:
    if name not in SEARCHABLE:
        known = OTHER_NAMES.get(name, name)
        close = difflib.get_close_matches(known[:80], SEARCHABLE, n=1)
        hint = f"did you mean {close[0]}?" if close else f"these can: {', '.join(SEARCHABLE)}"
        raise ValueError(f"{name[:80]!r} is no key that can be searched; {hint}")
    return name


ParameterName = Annotated[str, AfterValidator(_searchable)]


def _takes_fractions(name: str) -> bool:
    """Whether the section's field is a float, so that a range from 0 to 1 is not the integers 0 and 1."""

    def mentions_float(annotation: Any) -> bool:
        return annotation is float or any(map(mentions_float, get_args(annotation)))

    return mentions_float(SECTIONS[SEARCHABLE[name]].model_fields[name].annotation)


class Condition(Settings):
    """When a conditional parameter is searched: the other parameter lies in a range or a set."""

    values: Values | None = None
    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _values_or_range(self) -> Condition:
        if (self.values is None) == (self.min is None and self.max is None):
            raise ValueError("give `values`, or `min` and/or `max`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min <= max must hold, but got min={self.min}, max={self.max}")
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
            if len({(isinstance(value, bool), value) for value in self.values}) < len(self.values):
                raise RuleError(("values",), f"values must differ, but got {list(self.values)}")
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

    def in_fractions(self) -> Parameter:
        """A copy of the parameter with every number as a float."""

        def number(value: Any) -> Any:
            return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

        values = None if self.values is None else tuple(map(number, self.values))
        bounds = {name: number(getattr(self, name)) for name in ("min", "max", "step")}
        return self.model_copy(update={"values": values, **bounds})

    @property
    def is_integer(self) -> bool:
        """Whether a range runs over whole numbers."""
        return all(isinstance(bound, int) for bound in (self.min, self.max, self.step or 1))


ObjectiveName = Annotated[str, known(objectives)]
CostName = Annotated[str, known(costs)]


class Metric(Settings):
    """What is optimized."""

    name: ObjectiveName
    goal: Goal = "minimize"
    """That of the measure; it need not be written."""

    @model_validator(mode="before")
    @classmethod
    def _goal_of_the_measure(cls, data: Any) -> Any:
        measure = MEASURES.get(str(data.get("name"))) if isinstance(data, dict) else None
        return data if measure is None else {"goal": measure.goal, **data}

    @model_validator(mode="after")
    def _no_other_goal(self) -> Metric:
        if self.goal != self.measure.goal:
            raise RuleError(("goal",), f"{self.name} is to {self.measure.goal}, but goal is {self.goal}; leave it out")
        return self

    @property
    def measure(self) -> Measure:
        """The measure that the verdict is about, from the table of measures."""
        return MEASURES[self.name]


def _one_to_tuple(value: Any) -> Any:
    if isinstance(value, str):
        return ({"name": value},)
    return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, dict) else value


class Confirm(Settings):
    """Train finalists again with fresh seeds, so that neither the best value nor a tie with it is luck.

    Finalists are by turns the next best trial and the next cheapest one that may tie with the best.
    """

    top: int = Field(default=3, ge=1)
    """How many finalists."""
    seeds: int = Field(default=3, ge=1)
    """Trainings of each."""


class Verdict(Settings):
    """What counts as a tie."""

    margin: float = Field(default=0.01, ge=0, lt=1)
    """Share of the best trial's gain over the base within which a cheaper configuration is as good."""
    absolute_margin: Annotated[float, Field(ge=0)] | None = None
    """The same in the unit of what is judged, nats per token or points of a score; replaces `margin`."""
    cost: CostName = TRAINABLE_PARAMS.name
    """What makes a configuration cheaper; at the same cost, trained parameters and then training time do."""

    def width(self, gain: float) -> float:
        """How much worse than the best still ties with it, given the best one's gain over the bare base."""
        return tie_width(self.margin, self.absolute_margin, gain)


class SweepSettings(Settings):
    """How the study is searched."""

    metric: Annotated[tuple[Metric, ...], BeforeValidator(_one_to_tuple), Field(min_length=1)] = (
        Metric(name=EVAL_LOSS.name),
    )
    sampler: Literal["tpe", "grid", "random", "qmc", "gp", "nsga2"] = "tpe"
    pruner: Literal["asha", "hyperband", "median", "none"] = "asha"
    n_trials: Annotated[int, Field(ge=1)] | None = None
    """Trials in all; by default the whole grid for `sampler: grid`, otherwise required."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the sampler, not of the trials."""
    seeds: Annotated[int, Field(ge=2, le=100)] | None = None
    """Replicates of every cell of a grid: short for a parameter `seed` with the values 0 .. seeds - 1."""
    parameters: dict[ParameterName, Parameter] = Field(min_length=1)
    confirm: Confirm | None = None
    verdict: Verdict = Verdict()
    pack_size: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Trials that train at the same time; a number makes the whole study reproducible."""

    @property
    def fixed_pack_size(self) -> int | None:
        """The pack size that the study sets, None where it is found by measuring."""
        return None if self.pack_size == "auto" else self.pack_size

    @field_validator("parameters")
    @classmethod
    def _numbers_of_the_field(cls, parameters: dict[str, Parameter]) -> dict[str, Parameter]:
        return {
            name: parameter.in_fractions() if _takes_fractions(name) else parameter
            for name, parameter in parameters.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> SweepSettings:
        names = [metric.name for metric in self.metric]
        if len(set(names)) < len(names):
            raise RuleError(("metric",), f"metric names must differ, but got {names}")
        if self.multi_objective and self.pruner not in ("asha", "none"):
            raise RuleError(
                ("pruner",),
                f"a study of {len(names)} metrics prunes by Pareto dominance, which is `pruner: asha`; set that or "
                f"none (it is {self.pruner})",
            )
        if {"lora_alpha", "alpha_ratio"} <= self.parameters.keys():
            raise RuleError(("parameters", "alpha_ratio"), "search lora_alpha or alpha_ratio, not both")
        return self

    @model_validator(mode="after")
    def _replicates_are_a_parameter(self) -> SweepSettings:
        if self.seeds is None:
            return self
        values = tuple(range(self.seeds))
        if self.sampler != "grid":
            raise RuleError(
                ("seeds",), f"replicates every cell of a grid, but sampler is {self.sampler}; use confirm there"
            )
        if "seed" in self.parameters and self.parameters["seed"].values != values:
            raise RuleError(("seeds",), "give seeds or the parameter seed, not both")
        self.parameters["seed"] = Parameter(values=values)
        return self

    @model_validator(mode="after")
    def _sampler_has_what_it_needs(self) -> SweepSettings:
        if self.sampler != "grid" and self.n_trials is None:
            raise RuleError(("n_trials",), f"is missing; sampler {self.sampler} needs it (only grid ends by itself)")
        for name, parameter in self.parameters.items():
            if self.sampler == "grid" and parameter.values is None and parameter.step is None:
                raise RuleError(
                    ("parameters", name),
                    "sampler grid needs `values` or `step` for every parameter; this range has neither",
                )
        return self

    @property
    def judged(self) -> Measure:
        """What the verdict is about: the first metric that the bare base has too, else eval_loss."""
        return next((metric.measure for metric in self.metric if metric.measure.gain), EVAL_LOSS)

    @property
    def multi_objective(self) -> bool:
        """Whether there is more than one metric."""
        return len(self.metric) > 1
