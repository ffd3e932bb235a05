"""The coordinator's one door to Optuna: ask for trials, report and tell what became of them, read them back.

Optuna's storage is the truth of a study. Each trial carries two JSON texts besides Optuna's own fields: its
whole configuration (`config`) and, from the moment it ends, its `outcome`. The outcome is written before the
trial is told, so a kill in between leaves a trial that the next process can close without training anything.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as OptunaState
from pydantic import ValidationError

from lora_lab.search.connection import connect
from lora_lab.search.space import from_choice, grid, suggest, to_choice
from lora_lab.search.strategy import make_pruner, make_sampler
from lora_lab.study.errors import InputError, StorageError
from lora_lab.study.loading import load_spec_json
from lora_lab.study.results import TrialResult
from lora_lab.study.settings import TrialConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.study.results import TrialState
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

FailedState = Literal["diverged", "out_of_memory", "failed"]
TOLD_AS: dict[TrialState, OptunaState] = {
    "complete": OptunaState.COMPLETE,
    "pruned": OptunaState.PRUNED,
    # Samplers ignore failed trials; a pruned one that breaks a constraint teaches them to stay away from it.
    "diverged": OptunaState.PRUNED,
    "out_of_memory": OptunaState.PRUNED,
    "failed": OptunaState.FAIL,
}
CONSTRAINT = "trains"
MOST_REFUSED = 100

optuna.logging.set_verbosity(optuna.logging.ERROR)
logging.getLogger("alembic").setLevel(logging.WARNING)


@dataclass(frozen=True, slots=True)
class Asked:
    """A trial to train."""

    number: int
    params: Mapping[str, Value]
    config: TrialConfig
    replicate: int = 0
    """0 for the search; 1, 2, ... for retrainings with fresh seeds."""
    confirms: int | None = None
    """For a replicate: the number of the trial that it repeats."""


def open_store(spec: StudySpec, url: str) -> StudyStore:
    """Create the study, or open it to go on.

    Raises:
        InputError: no database URL, or a change that Optuna cannot take up.
        StorageError: the database cannot be used.
    """
    storage, engine = connect(url)
    study = optuna.create_study(
        storage=storage,  # type: ignore[arg-type]
        study_name=spec.study_name,
        directions=[metric.goal for metric in spec.sweep.metric],
        load_if_exists=True,
    )
    study.sampler = make_sampler(spec, len(study.get_trials(deepcopy=False)))
    study.pruner = make_pruner(spec)
    store = StudyStore(study, spec, engine)
    store.settle()
    return store


def read_store(spec: StudySpec, url: str) -> StudyStore:
    """Open a study that exists, to read its results.

    Raises:
        StorageError: there is no such study yet, or the database cannot be used.
    """
    storage, engine = connect(url, create=False)
    try:
        study = optuna.load_study(storage=storage, study_name=spec.study_name)  # type: ignore[arg-type]
    except KeyError:
        raise StorageError(
            f"study {spec.study_name} is not in its storage; run `python -m lora_lab.sweep` on it first"
        ) from None
    return StudyStore(study, spec, engine)


class StudyStore:
    """One study in Optuna's storage; made by `open_store` and `read_store`."""

    def __init__(self, study: optuna.Study, spec: StudySpec, engine: Any) -> None:
        self._study, self._spec, self._engine = study, spec, engine
        self._trials: dict[int, Trial] = {}
        self._configs: dict[int, TrialConfig] = {}

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    # What belongs to the study as a whole

    def stored_spec(self) -> StudySpec | None:
        """The study as it was when it last ran; None for a new one."""
        text = self._study.user_attrs.get("spec")
        return load_spec_json(text) if text else None

    def keep_spec(self, spec: StudySpec) -> None:
        """Remember the study as it is now."""
        text = spec.model_dump_json()
        if self._study.user_attrs.get("spec") != text:
            self._study.set_user_attr("spec", text)

    def base_losses(self) -> tuple[float, float | None] | None:
        """eval_loss and forgetting loss of the bare base; None before they were measured."""
        kept = self._study.user_attrs.get("base_losses")
        return (kept[0], kept[1]) if kept else None

    def keep_base_losses(self, eval_loss: float, forgetting_loss: float | None) -> None:
        """Remember the losses of the bare base."""
        self._study.set_user_attr("base_losses", [eval_loss, forgetting_loss])

    def mark_complete(self) -> None:
        """Remember that the sweep, as its settings now are, has nothing left to do."""
        self._study.set_user_attr("complete", self._spec.sweep.model_dump_json())

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do for these very settings of the sweep."""
        return bool(self._study.user_attrs.get("complete") == self._spec.sweep.model_dump_json())

    def budget(self) -> tuple[int, int]:
        """Trials of the search that ended, and how many there are to be."""
        ended = [t for t in self._searched() if t.state.is_finished()]
        return len(ended), self._total

    @property
    def _total(self) -> int:
        trials = self._spec.sweep.n_trials
        if self._spec.sweep.sampler != "grid":
            assert trials is not None
            return trials
        cells = 1
        for levels in grid(self._spec).values():
            cells *= len(levels)
        return cells if trials is None else min(cells, trials)

    def _searched(self) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False)
        return [trial for trial in trials if "confirms" not in trial.user_attrs]

    # Asking

    def ask(self) -> Asked | None:
        """The next trial; None when the budget is used up.

        A combination of values that no trial can have is told as failed, counts, and the next one is asked.

        Raises:
            InputError: nearly all combinations are impossible.
        """
        for _ in range(MOST_REFUSED):
            if not self._has_waiting() and len(self._searched()) >= self._total:
                return None
            asked = self._configured(self._study.ask())
            if asked is not None:
                return asked
        raise InputError(f"{MOST_REFUSED} samples in a row gave settings that no trial can have; look at `parameters`")

    def _has_waiting(self) -> bool:
        return bool(self._study.get_trials(deepcopy=False, states=(OptunaState.WAITING,)))

    def _configured(self, trial: Trial) -> Asked | None:
        """Draw what is not drawn yet, and keep the configuration; None where no trial can have it."""
        self._trials[trial.number] = trial
        try:
            params = suggest(trial, self._spec)
        except ValueError as error:
            if "dynamic value space" not in str(error):
                raise
            raise InputError(
                "the `values` of a parameter were changed, which Optuna cannot take up in a study that has begun; "
                "change them back, or start over with --fresh"
            ) from error
        attributes = trial.user_attrs
        try:
            config = self._spec.trial_config(params)
        except ValidationError as error:
            self._end(trial.number, "failed", reason=str(error.errors()[0]["msg"]))
            return None
        if "seed" in attributes:
            training = config.training.model_copy(update={"seed": attributes["seed"]})
            config = config.model_copy(update={"training": training})
        trial.set_user_attr("config", config.model_dump_json())
        self._configs[trial.number] = config
        return Asked(trial.number, params, config, attributes.get("replicate", 0), attributes.get("confirms"))

    def running(self) -> list[Asked]:
        """Trials that a coordinator left unfinished, to be continued under their numbers."""
        left = self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,))
        continued = [self._continued(trial) for trial in left]
        return [asked for asked in continued if asked is not None]

    def _continued(self, frozen: FrozenTrial) -> Asked | None:
        trial = Trial(self._study, frozen._trial_id)  # noqa: SLF001 -- the documented way in has no other name
        if "config" not in frozen.user_attrs:
            return self._configured(trial)
        self._trials[frozen.number] = trial
        attributes = frozen.user_attrs
        return Asked(
            frozen.number,
            _params(frozen),
            self._config(frozen),
            attributes.get("replicate", 0),
            attributes.get("confirms"),
        )

    def enqueue_replicate(self, number: int, *, seed: int, replicate: int) -> None:
        """Ask for a trial once more with another seed; it does not count against the budget."""
        source = self._frozen(number)
        params = {name: to_choice(value) for name, value in _params(source).items()}
        attributes = {"confirms": number, "replicate": replicate, "seed": seed}
        self._study.enqueue_trial(params, user_attrs=attributes)

    # Telling

    def report(self, number: int, evaluation: int, value: float) -> None:
        """Keep an intermediate value; what was reported for this evaluation before stays."""
        if evaluation in self._frozen(number).intermediate_values:
            return
        trial = self._trials[number]
        if self._spec.sweep.multi_objective:  # Optuna's `report` refuses there, its storage does not
            self._study._storage.set_trial_intermediate_value(trial._trial_id, evaluation, value)  # noqa: SLF001
        else:
            trial.report(value, evaluation)

    def should_prune(self, number: int) -> bool:
        """Whether the pruner gives the trial up at its newest evaluation."""
        return not self._spec.sweep.multi_objective and self._trials[number].should_prune()

    def finish(self, number: int, metrics: Mapping[str, float]) -> None:
        """The trial reached its end."""
        self._end(number, "complete", metrics=metrics)

    def prune(self, number: int, reason: str, metrics: Mapping[str, float] | None = None) -> None:
        """The trial was given up."""
        self._end(number, "pruned", reason=reason, metrics=metrics)

    def fail(self, number: int, state: FailedState, reason: str) -> None:
        """The trial could not be trained."""
        self._end(number, state, reason=reason)

    def share(self, number: int, source: int) -> None:
        """The trial is the same training as `source`, which has ended: it gets that one's outcome."""
        origin = self._frozen(source)
        for evaluation, value in origin.intermediate_values.items():
            self.report(number, evaluation, value)
        outcome = _outcome(origin)
        reason = f"the same training as trial {source}"
        self._end(number, "shared", reason=reason, metrics=outcome.get("metrics"), source=source)

    def _end(
        self,
        number: int,
        state: TrialState,
        *,
        reason: str = "",
        metrics: Mapping[str, float] | None = None,
        source: int | None = None,
    ) -> None:
        outcome = {"state": state, "reason": reason, "metrics": dict(metrics or {}), "source": source}
        self._trials[number].set_user_attr("outcome", json.dumps(outcome))
        self._tell(number, outcome)
        self._trials.pop(number, None)

    def _tell(self, number: int, outcome: Mapping[str, Any]) -> None:
        state: TrialState = outcome["state"]
        if state == "shared":
            state = _outcome(self._frozen(outcome["source"]))["state"]
        told = TOLD_AS[state]
        if told is not OptunaState.FAIL:
            self._trials[number].set_constraint(CONSTRAINT, 1.0 if state in ("diverged", "out_of_memory") else 0.0)
        values = None
        if told is OptunaState.COMPLETE:
            values = [outcome["metrics"][metric.name] for metric in self._spec.sweep.metric]
        self._study.tell(number, values, told, skip_if_finished=True)

    def settle(self) -> None:
        """Tell the trials whose outcome was kept before a kill and not told."""
        for frozen in self._study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,)):
            if "outcome" in frozen.user_attrs:
                self._trials[frozen.number] = Trial(self._study, frozen._trial_id)  # noqa: SLF001
                self._tell(frozen.number, _outcome(frozen))

    # Reading

    def results(self) -> list[TrialResult]:
        """Every trial that has a configuration, from the storage alone."""
        trials = self._study.get_trials(deepcopy=False)
        return [self._result(trial) for trial in trials if "config" in trial.user_attrs]

    def result(self, number: int) -> TrialResult:
        """One trial."""
        return self._result(self._frozen(number))

    def _result(self, frozen: FrozenTrial) -> TrialResult:
        attributes = frozen.user_attrs
        outcome = _outcome(frozen) if frozen.state.is_finished() else {}
        return TrialResult(
            number=frozen.number,
            state=outcome.get("state", "running"),
            params=_params(frozen),
            config=self._config(frozen),
            metrics=outcome.get("metrics", {}),
            curve=dict(sorted(frozen.intermediate_values.items())),
            source=outcome.get("source"),
            reason=outcome.get("reason", ""),
            replicate=attributes.get("replicate", 0),
            confirms=attributes.get("confirms"),
        )

    def _frozen(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _config(self, frozen: FrozenTrial) -> TrialConfig:
        if frozen.number not in self._configs:
            self._configs[frozen.number] = TrialConfig.model_validate_json(frozen.user_attrs["config"])
        return self._configs[frozen.number]


def _params(frozen: FrozenTrial) -> dict[str, Value]:
    return {name: from_choice(choice) for name, choice in frozen.params.items()}


def _outcome(frozen: FrozenTrial) -> dict[str, Any]:
    text = frozen.user_attrs.get("outcome")
    if text is None:
        return {"state": "failed", "reason": "ended by another program", "metrics": {}, "source": None}
    return dict(json.loads(text))
