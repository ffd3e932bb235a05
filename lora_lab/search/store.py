"""A study in its database: the coordinator's only door to Optuna.

One coordinator asks and tells; any number of processes may read results at the same time. Every method may be
called again after a kill: what was already written stays as it is, what was half written is finished.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Self, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as Told
from pydantic import ValidationError

from lora_lab.search import records
from lora_lab.search.connection import connect
from lora_lab.search.grid import Grid
from lora_lab.search.pruners import build_pruner, planned_evaluations
from lora_lab.search.records import Asked, Outcome, is_replicate, outcome_of
from lora_lab.search.samplers import build_sampler
from lora_lab.search.space import SearchSpace
from lora_lab.search.telling import INFEASIBLE, as_told
from lora_lab.search.urls import mask_password
from lora_lab.study.errors import InputError, StorageError, TrainingError
from lora_lab.study.loading import load_spec_json
from lora_lab.study.results import FINISHED_WITH_VALUE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.storages import BaseStorage
    from sqlalchemy.engine import Engine

    from lora_lab.study.results import TrialResult, TrialState
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec

__all__ = ["Asked", "StudyStore", "open_store"]

SPEC = "spec"
BASE_LOSSES = "base_losses"
COMPLETE = "complete"
CONSTRAINT = "trainable"
"""Optuna's constraint of all trials: above 0 for one that diverged or did not fit on the device."""
FAILURES: tuple[TrialState, ...] = (*INFEASIBLE, "failed")
MAX_REFUSALS = 100


def open_store(spec: StudySpec, url: str, *, create: bool = True) -> StudyStore:
    """Open a study in the database, or begin it; with `create` off, only an existing one.

    Raises:
        InputError: `url` is no database URL, or the grid is too large to enumerate.
        StorageError: the database cannot be opened, or has no such study and `create` is off.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    connected, engine = connect(url, create=create)
    storage = cast("BaseStorage", connected)
    sampler, pruner = build_sampler(spec.sweep, 0), build_pruner(spec)
    if create:
        study = optuna.create_study(
            storage=storage,
            study_name=spec.study_name,
            directions=[metric.goal for metric in spec.sweep.metric],
            sampler=sampler,
            pruner=pruner,
            load_if_exists=True,
        )
    else:
        try:
            study = optuna.load_study(study_name=spec.study_name, storage=storage, sampler=sampler, pruner=pruner)
        except KeyError:
            engine.dispose()
            raise StorageError(
                f"storage {mask_password(url)}: there is no study {spec.study_name!r} in it; "
                "run `python -m lora_lab.sweep` with the study first"
            ) from None
    store = StudyStore(spec, study, storage, engine)
    if create and store.stored_spec() is None:
        store.replace_spec(spec)
    return store


class StudyStore:
    """The trials of one study: asks for the next, records what happens to each, reads all of them back."""

    def __init__(self, spec: StudySpec, study: optuna.Study, storage: BaseStorage, engine: Engine) -> None:
        self._spec, self._study, self._storage, self._engine = spec, study, storage, engine
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._space = SearchSpace(spec)
        self._grid = Grid(self._space, spec.sweep.seed) if spec.sweep.sampler == "grid" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the database connections back; nothing is buffered, so nothing can be lost here."""
        self._engine.dispose()

    def stored_spec(self) -> StudySpec | None:
        """The study as it was when it was begun or last replaced; its `storage` is left out.

        Raises:
            StorageError: it is damaged, or was written by a version with other settings.
        """
        text = self._study.user_attrs.get(SPEC)
        return None if text is None else load_spec_json(text)

    def replace_spec(self, spec: StudySpec) -> None:
        """Store this spec as the study's, without `storage`: a database URL may hold a password."""
        self._study.set_user_attr(SPEC, spec.model_copy(update={"storage": None}).model_dump_json())

    def base_losses(self) -> tuple[float, float | None] | None:
        """eval_loss and forgetting loss of the bare base, in nats per token; None before they were measured."""
        kept = self._study.user_attrs.get(BASE_LOSSES)
        return None if kept is None else (kept[0], kept[1])

    def keep_base_losses(self, eval_loss: float, forgetting_loss: float | None) -> None:
        """Keep the losses of the bare base, which every gain is measured against."""
        self._study.set_user_attr(BASE_LOSSES, [eval_loss, forgetting_loss])

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to do for the sweep as its settings are now."""
        return bool(self._study.user_attrs.get(COMPLETE) == self._spec.sweep.model_dump_json())

    def mark_complete(self) -> None:
        """Remember that the sweep, as its settings are now, was carried out to its end."""
        self._study.set_user_attr(COMPLETE, self._spec.sweep.model_dump_json())

    def ask(self) -> Asked | None:
        """The next trial to train, replicates first; None when the budget is used up.

        A combination of values that no trial can have is told as failed, and counts.

        Raises:
            InputError: the sampler finds nothing but impossible combinations.
        """
        reason = ""
        for _ in range(MAX_REFUSALS):
            if not self._has_next():
                return None
            trial = self._study.ask()
            asked = self._configure(trial)
            if isinstance(asked, Asked):
                return asked
            reason = asked
        raise InputError(
            f"sweep.parameters: the last {MAX_REFUSALS} combinations of values are impossible ({reason}); "
            "remove such values, or search a parameter only `when` another allows it"
        )

    def running(self) -> list[Asked]:
        """Trials that a dead coordinator left unfinished, to be continued under their numbers.

        To be called once, before the first `ask`: it also finishes what was half told.
        """
        unfinished: list[Asked] = []
        for trial in self._trials(Told.RUNNING):
            outcome = outcome_of(trial)
            if outcome is not None:
                self._tell(trial, outcome)
                continue
            asked = records.asked_of(trial) or self._configure(self._live(trial.number))
            if isinstance(asked, Asked):
                unfinished.append(asked)
        return unfinished

    def report(self, number: int, evaluation: int, value: float) -> None:
        """Record eval_loss after an evaluation (1, 2, ...); the same evaluation again changes nothing."""
        trial = self._trial(number)
        curve = records.curve_of(trial)
        if evaluation in curve:
            return
        if self._spec.sweep.multi_objective:
            # Optuna takes an intermediate value for the objective, of which there are several here.
            self._set(trial.number, records.CURVE, {**curve, evaluation: value})
        else:
            self._storage.set_trial_intermediate_value(self._id(number), evaluation, value)

    def should_prune(self, number: int) -> bool:
        """Whether the pruner would stop the trial after its last reported evaluation.

        Trials that train together are compared with each other when all of them have reported before the first
        is asked about. Never true for a replicate, nor after the last evaluation: nothing is left to save.
        """
        trial = self._trial(number)
        if self._spec.sweep.multi_objective or is_replicate(trial) or trial.last_step is None:
            return False
        asked = records.asked_of(trial)
        planned = planned_evaluations(asked.config.training) if asked else None
        at_its_end = planned is not None and trial.last_step >= planned
        return self._study.pruner.prune(self._study, trial) and not at_its_end

    def finish(self, number: int, metrics: Mapping[str, float]) -> None:
        """Tell a trial complete with its final metrics; one whose objective is not finite has diverged.

        Raises:
            TrainingError: an objective of the study is missing among the metrics.
        """
        names = [metric.name for metric in self._spec.sweep.metric]
        missing = [name for name in names if name not in metrics]
        if missing:
            raise TrainingError(
                f"trial {number} ended without {missing[0]}, which the study optimizes; it measured "
                f"{', '.join(metrics) or 'nothing'}"
            )
        bad = [name for name in names if not math.isfinite(metrics[name])]
        if bad:
            reason = f"{bad[0]} is {metrics[bad[0]]} at the end"
            self._conclude(number, Outcome(state="diverged", metrics=metrics, reason=reason))
        else:
            self._conclude(number, Outcome(state="complete", metrics=metrics))

    def prune(self, number: int, reason: str, metrics: Mapping[str, float] | None = None) -> None:
        """Tell a trial pruned, with what was measured until then."""
        self._conclude(number, Outcome(state="pruned", reason=reason, metrics=metrics or {}))

    def fail(self, number: int, state: TrialState, reason: str) -> None:
        """Tell a trial `diverged`, `out_of_memory` or `failed`; the sampler learns from the first two."""
        assert state in FAILURES, f"{state} is no failure"
        self._conclude(number, Outcome(state=state, reason=reason))

    def share(
        self,
        number: int,
        source: int,
        *,
        metrics: Mapping[str, float] | None = None,
        evaluations: int | None = None,
    ) -> None:
        """Tell a trial the outcome of an equivalent one, without training it.

        Args:
            number: The trial to tell.
            source: The trial whose outcome it is. It has ended, unless `metrics` are given.
            metrics: The figures at an earlier point of the source's trajectory.
            evaluations: How much of the source's curve to copy; all of it by default.
        """
        origin = self._trial(source)
        outcome = Outcome(state="complete", metrics=metrics) if metrics is not None else outcome_of(origin)
        assert outcome is not None, f"trial {source} has not ended, so trial {number} cannot share its outcome"
        for evaluation, value in records.curve_of(origin).items():
            if evaluations is None or evaluation <= evaluations:
                self.report(number, evaluation, value)
        has_value = outcome.state in FINISHED_WITH_VALUE
        reason = f"as trial {source}: {outcome.reason}" if outcome.reason else ""
        state = "shared" if has_value else outcome.state
        self._conclude(number, Outcome(state=state, metrics=outcome.metrics, reason=reason, source=source))

    def set_attribute(self, number: int, key: str, value: Any) -> None:
        """Keep a JSON value with a trial that has not ended."""
        assert key not in records.RESERVED_KEYS, f"{key} belongs to the search"
        self._set(number, key, value)

    def attribute(self, number: int, key: str) -> Any:
        """A value kept with `set_attribute`, None where there is none."""
        return self._trial(number).user_attrs.get(key)

    def enqueue_replicate(self, source_number: int, seed: int, replicate: int) -> None:
        """Ask next for the trial `source_number` again, with `training.seed` = `seed`.

        Once for each source and replicate (1, 2, ...), however often it is called. Not part of the budget.
        """
        attributes = {records.CONFIRMS: source_number, records.REPLICATE: replicate}
        if any(attributes.items() <= trial.user_attrs.items() for trial in self._trials()):
            return
        params = self._trial(source_number).params
        self._study.enqueue_trial(params, user_attrs={**attributes, records.SEED: seed})

    def results(self) -> list[TrialResult]:
        """All trials that have a configuration, by number, from the storage alone.

        Left out are replicates that wait their turn and combinations of values that no trial can have.

        Raises:
            StorageError: a stored trial is of another version of lora_lab.
        """
        return [result for trial in self._trials() if (result := records.result_of(trial)) is not None]

    def result(self, number: int) -> TrialResult:
        """One trial that has a configuration."""
        result = records.result_of(self._trial(number))
        assert result is not None, f"trial {number} has no configuration"
        return result

    def budget(self) -> tuple[int, int]:
        """Trials of the search that have ended, and trials of the search in all; replicates apart."""
        ended = [trial for trial in self._trials() if trial.state.is_finished() and not is_replicate(trial)]
        return len(ended), self._total()

    def best(self) -> TrialResult | None:
        """The trial of the search with the best objective, None while there is none.

        Raises:
            InputError: the study has several metrics, so that there is no single best trial.
        """
        if self._spec.sweep.multi_objective:
            raise InputError("sweep.metric: a study of several metrics has no single best trial")
        metric = self._spec.sweep.metric[0]
        sign = 1 if metric.goal == "minimize" else -1
        ended = [result for result in self.results() if result.has_value and not result.replicate]
        return min(ended, key=lambda result: sign * result.metrics[metric.name], default=None)

    def _total(self) -> int:
        sizes = [self._spec.sweep.n_trials, None if self._grid is None else len(self._grid)]
        return min(size for size in sizes if size is not None)

    def _has_next(self) -> bool:
        """Whether there is a trial to ask for; puts the next cell of a grid into the queue."""
        trials = self._trials()
        if any(trial.state is Told.WAITING for trial in trials):
            return True
        searched = [trial for trial in trials if not is_replicate(trial)]
        if len(searched) >= self._total():
            return False
        if self._grid is not None:
            cell = self._grid.next_cell([trial.system_attrs.get("fixed_params", {}) for trial in searched])
            if cell is None:
                return False
            self._study.enqueue_trial(cell)
        return True

    def _configure(self, trial: Trial) -> Asked | str:
        """Choose the values of a trial and store its configuration; the reason where there can be none."""
        self._study.sampler = build_sampler(self._spec.sweep, trial.number)
        params = self._space.choose(trial)
        attributes = trial.user_attrs
        try:
            config = self._spec.trial_config(params)
            if records.SEED in attributes:
                config = _with_seed(config, attributes[records.SEED])
        except ValidationError as error:
            reason = records.one_line(error)
            self._conclude(trial.number, Outcome(state="failed", reason=reason))
            return reason
        asked = Asked(
            number=trial.number,
            params=params,
            config=config,
            replicate=attributes.get(records.REPLICATE, 0),
            confirms=attributes.get(records.CONFIRMS),
        )
        self._set(trial.number, records.ASKED, asked.record())
        return asked

    def _conclude(self, number: int, outcome: Outcome) -> None:
        """Record how a trial ended, then tell Optuna; the same again changes nothing."""
        trial = self._trial(number)
        known = outcome_of(trial)
        if known is None and not trial.state.is_finished():
            self._set(number, records.OUTCOME, outcome.record())
        elif known is None or known.state != outcome.state:
            state = known.state if known else trial.state.name.lower()
            raise StorageError(
                f"trial {number} is already {state} in the storage, so it cannot become {outcome.state}; "
                "does another process write to this study?"
            )
        if not trial.state.is_finished():
            self._tell(trial, known or outcome)

    def _tell(self, trial: FrozenTrial, outcome: Outcome) -> None:
        others = self._trials(Told.COMPLETE) if outcome.state in INFEASIBLE else []
        state, values = as_told(outcome, self._spec.sweep, others)
        if outcome.state != "failed" and CONSTRAINT not in trial.constraints:
            self._live(trial.number).set_constraint(CONSTRAINT, 1 if outcome.state in INFEASIBLE else -1)
        try:
            self._study.tell(trial.number, values, state)
        except UpdateFinishedTrialError:
            # A connection that breaks between the commit and its answer: the repeated write finds its own.
            if self._trial(trial.number).state is not state:
                raise

    def _trials(self, *states: Told) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _trial(self, number: int) -> FrozenTrial:
        return self._storage.get_trial(self._id(number))

    def _live(self, number: int) -> Trial:
        """A trial as Optuna's samplers and pruners take it."""
        return Trial(self._study, self._id(number))

    def _set(self, number: int, key: str, value: Any) -> None:
        self._storage.set_trial_user_attr(self._id(number), key, value)


def _with_seed(config: TrialConfig, seed: int) -> TrialConfig:
    training = config.training.model_dump() | {"seed": seed}
    return type(config).model_validate({**config.model_dump(), "training": training})
