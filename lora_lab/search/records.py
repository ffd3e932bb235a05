"""What is kept with a trial in the storage, and how a result is read from it.

Each record is one user attribute, so that it is written whole or not at all. `asked` comes first: what the
sampler chose, and the configuration made of it. `outcome` is written *before* Optuna's own state: a
coordinator killed between the two finds it and finishes the telling. The outcome is the truth; Optuna's state
says what the sampler learns. `engine` is written when a trial begins to train, before anything is told of it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lora_lab.common.errors import StorageError
from lora_lab.study.engines import EngineChoice, engine_for
from lora_lab.study.results import TrialResult, TrialState
from lora_lab.study.settings import TrialConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.trial import FrozenTrial

    from lora_lab.study.sweep import Value

ASKED = "asked"
OUTCOME = "outcome"
CURVE = "curve"
REPLICATE = "replicate"
CONFIRMS = "confirms"
SEED = "replicate_seed"
BRANCHED_FROM = "branched_from"
RUNGS = "rungs"
ENGINE = "engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A trial to be trained."""

    number: int
    params: Mapping[str, Value]
    """The values that the sampler chose, by parameter name."""
    config: TrialConfig
    replicate: int = 0
    """0 for the search; 1, 2, ... for a retraining with a fresh seed."""
    confirms: int | None = None
    """For a replicate: the number of the trial that it repeats."""
    branched_from: int | None = None
    """The number of the trial that trained its first steps."""

    def record(self) -> dict[str, Any]:
        """The value of the `asked` attribute."""
        return {"params": dict(self.params), "config": self.config.model_dump(mode="json")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trial ended."""

    state: TrialState
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    source: int | None = None
    """The number of the trial whose outcome this is, for one that was not trained itself."""

    def record(self) -> dict[str, Any]:
        """The value of the `outcome` attribute."""
        return {
            "state": self.state,
            "metrics": {name: float(value) for name, value in self.metrics.items()},
            "reason": self.reason,
            "source": self.source,
        }


def asked_of(trial: FrozenTrial) -> Asked | None:
    """What a trial is, None for one whose configuration was never stored.

    Raises:
        StorageError: the stored configuration is of another version of lora_lab, or damaged.
    """
    record = trial.user_attrs.get(ASKED)
    if record is None:
        return None
    params = {name: tuple(value) if isinstance(value, list) else value for name, value in record["params"].items()}
    try:
        config = TrialConfig.model_validate_json(json.dumps(record["config"]))
    except ValidationError as error:
        raise StorageError(
            f"trial {trial.number}: its stored configuration cannot be read ({validation_text(error)}); it is of "
            "another version of lora_lab: use that version, or start over with --fresh"
        ) from error
    return Asked(
        number=trial.number,
        params=params,
        config=config,
        replicate=trial.user_attrs.get(REPLICATE, 0),
        confirms=trial.user_attrs.get(CONFIRMS),
        branched_from=trial.user_attrs.get(BRANCHED_FROM),
    )


def engine_of(trial: FrozenTrial, config: TrialConfig) -> EngineChoice:
    """What trains or trained a trial; where no engine was kept with it, the one that its settings choose."""
    kept = trial.user_attrs.get(ENGINE)
    return engine_for(config) if kept is None else EngineChoice(*kept)


def outcome_of(trial: FrozenTrial) -> Outcome | None:
    """How a trial ended, None for one that has not."""
    record = trial.user_attrs.get(OUTCOME)
    return None if record is None else Outcome(**record)


def curve_of(trial: FrozenTrial) -> dict[int, float]:
    """eval_loss by evaluation, in order: what pruners may compare, and what they may not."""
    aside = {int(evaluation): value for evaluation, value in trial.user_attrs.get(CURVE, {}).items()}
    return dict(sorted({**trial.intermediate_values, **aside}.items()))


def first_of_curve(trial: FrozenTrial, evaluations: int | None) -> dict[int, float]:
    """The first so many evaluations; all for None."""
    curve = curve_of(trial)
    return {one: value for one, value in curve.items() if evaluations is None or one <= evaluations}


def result_of(trial: FrozenTrial) -> TrialResult | None:
    """A trial as the analysis reads it, None for one that has no configuration (yet)."""
    asked = asked_of(trial)
    if asked is None:
        return None
    outcome = outcome_of(trial) or Outcome(state="failed" if trial.state.is_finished() else "running")
    return TrialResult(
        number=trial.number,
        state=outcome.state,
        params=asked.params,
        config=asked.config,
        engine=engine_of(trial, asked.config),
        metrics=outcome.metrics,
        curve=curve_of(trial),
        source=outcome.source,
        reason=outcome.reason,
        replicate=asked.replicate,
        confirms=asked.confirms,
    )


def is_replicate(trial: FrozenTrial) -> bool:
    """Whether a trial repeats another with a fresh seed, and so is no part of the search."""
    return REPLICATE in trial.user_attrs


def validation_text(error: ValidationError) -> str:
    """What pydantic found, in one line."""
    found = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in found)
