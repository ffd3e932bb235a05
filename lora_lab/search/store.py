"""A study in its database: the coordinator's only door to Optuna.

One coordinator asks and tells; any number of processes may read results at the same time. Every method may be
called again after a kill: what was already written stays as it is, what was half written is finished.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self, cast

import optuna
from optuna.trial import TrialState as Told

from lora_lab.common.errors import StorageError, StudyLockedError, TrainingError
from lora_lab.common.secrets import redact_address
from lora_lab.search import records
from lora_lab.search.asking import Asking
from lora_lab.search.connection import connect, faults_named
from lora_lab.search.lease import study_lease
from lora_lab.search.ledger import Ledger
from lora_lab.search.pareto import is_in_worse_half
from lora_lab.search.pruners import build_pruner, planned_evaluations
from lora_lab.search.records import Asked, Outcome, is_replicate, outcome_of
from lora_lab.search.samplers import build_sampler
from lora_lab.search.space import SearchSpace
from lora_lab.search.study_record import HOME, Home, StudyRecord
from lora_lab.search.telling import INFEASIBLE
from lora_lab.search.trajectories import ShorterRuns
from lora_lab.study.measures import EVAL_LOSS
from lora_lab.study.results import FINISHED_WITH_VALUE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage

    from lora_lab.search.lease import StudyLease
    from lora_lab.search.patience import Patience, PatientStorage
    from lora_lab.study.engines import EngineChoice
    from lora_lab.study.results import TrialResult, TrialState
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

__all__ = ["Asked", "StudyStore", "open_store"]

FAILURES: tuple[TrialState, ...] = (*INFEASIBLE, "failed")


def open_store(
    spec: StudySpec, url: str, *, create: bool = True, lease: bool = False, patience: Patience | None = None
) -> StudyStore:
    """Open a study in the database, or make an empty one; with `create` off, only an existing one.

    Args:
        spec: The study.
        url: Where it is.
        create: Whether to make what is missing.
        lease: Whether to hold the study until the store is closed, so that nobody else works on it.
        patience: How an outage of the database is met, once it is open.

    Raises:
        InputError: `url` is no database URL, or the grid is too large to enumerate.
        StorageError: the database cannot be opened, or has no such study and `create` is off.
        StudyLockedError: another coordinator holds the study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    connected, engine = connect(url, create=create, patience=patience)
    storage = cast("BaseStorage", connected)
    sampler, pruner = build_sampler(spec.sweep, 0), build_pruner(spec)
    with ExitStack() as opened:
        opened.callback(engine.dispose)
        if lease:
            connected.lease = _held(spec.study_name, url, storage, opened)
        if create:
            study = _create(spec, storage, sampler, pruner)
        else:
            try:
                study = optuna.load_study(study_name=spec.study_name, storage=storage, sampler=sampler, pruner=pruner)
            except KeyError:
                raise StorageError(
                    f"storage {redact_address(url)}: there is no study {spec.study_name!r} in it; "
                    "run `python -m lora_lab.sweep` with the study first"
                ) from None
        return StudyStore(spec, study, connected, opened.pop_all())


def _held(study_name: str, url: str, storage: BaseStorage, opened: ExitStack) -> StudyLease:
    """The lease on a study; a refusal says where the study's files are, as far as that is kept."""
    try:
        with faults_named(url):
            return opened.enter_context(study_lease(url, study_name))
    except StudyLockedError as error:
        try:
            kept = storage.get_study_user_attrs(storage.get_study_id_from_name(study_name)).get(HOME)
        except KeyError:
            kept = None
        if kept is None:
            raise
        raise StudyLockedError(f"{error}; its files are in {Home(**kept)}") from None


def _create(spec: StudySpec, storage: BaseStorage, sampler: BaseSampler, pruner: BasePruner) -> optuna.Study:
    """The study of this name, or a new one; one without trials is made anew where the metrics are others."""
    create = functools.partial(
        optuna.create_study,
        storage=storage,
        study_name=spec.study_name,
        directions=[metric.goal for metric in spec.sweep.metric],
        sampler=sampler,
        pruner=pruner,
        load_if_exists=True,
    )
    study = create()
    goals = [direction.name.lower() for direction in study.directions]
    if goals == [metric.goal for metric in spec.sweep.metric] or study.get_trials(deepcopy=False):
        return study
    optuna.delete_study(study_name=spec.study_name, storage=storage)
    return create()


class StudyStore:
    """The trials of one study: asks for the next, records what happens to each, reads all of them back."""

    def __init__(self, spec: StudySpec, study: optuna.Study, storage: PatientStorage, opened: ExitStack) -> None:
        self._spec, self._study, self._storage, self._opened = spec, study, storage, opened
        self.record = StudyRecord(study, spec.sweep)
        self._ledger = Ledger(spec.sweep, study, cast("BaseStorage", storage))
        space = SearchSpace(spec)
        self._asking = Asking(spec, study, self._ledger, space)
        self._shorter_runs = ShorterRuns(spec, space)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the lease and the connections back; nothing is buffered, so nothing can be lost here."""
        self._opened.close()

    @property
    def answers(self) -> bool:
        """Whether the database is there now, so that asking for a trial would not have to wait for it."""
        return self._storage.answers

    def ask(self, reserved: int = 0) -> Asked | None:
        """The next trial to train, replicates first; None when the budget is used up.

        A combination of values that no trial can have is told as failed, and counts.

        Args:
            reserved: Trials of the budget that are expected from trainings in work (`add_read_off`, `add_branch`).

        Raises:
            InputError: the sampler finds nothing but impossible combinations.
        """
        return self._asking.ask(reserved)

    def running(self) -> list[Asked]:
        """Trials that a dead coordinator left unfinished, to be continued under their numbers.

        To be called once, before the first `ask`: it also finishes what was half told.
        """
        return self._asking.running()

    def keep_engine(self, number: int, engine: EngineChoice) -> None:
        """Keep what trains a trial, and why; to be called when it begins, and again whenever it goes on."""
        self._ledger.set(number, records.ENGINE, list(engine))

    def report(self, number: int, evaluation: int, eval_loss: float, known: Mapping[str, float] | None = None) -> None:
        """Record eval_loss after an evaluation (1, 2, ...); a second call for an evaluation changes nothing.

        Args:
            number: Of the trial.
            evaluation: Its number.
            eval_loss: Nats per token.
            known: The other objectives as far as they are known then, by their names.
        """
        trial = self._ledger.trial(number)
        curve, sweep = records.curve_of(trial), self._spec.sweep
        figures = {**(known or {}), EVAL_LOSS.name: eval_loss}
        if sweep.multi_objective:
            # Optuna takes an intermediate value for the objective, of which there are several here.
            if evaluation not in curve:
                rungs = trial.user_attrs.get(records.RUNGS, {})
                self._ledger.set(number, records.RUNGS, {**rungs, str(evaluation): figures})
                self._ledger.set(number, records.CURVE, {**curve, evaluation: eval_loss})
            return
        objective = sweep.metric[0].measure
        if objective.kind == "score":
            # The curve is apart here, since what the pruner compares is the score; unknown, it compares nothing.
            if evaluation not in trial.user_attrs.get(records.CURVE, {}):
                self._ledger.set(number, records.CURVE, {**curve, evaluation: eval_loss})
            if objective.name in figures and evaluation not in trial.intermediate_values:
                self._ledger.set_intermediate(number, evaluation, figures[objective.name])
        elif evaluation not in curve:
            self._ledger.set_intermediate(number, evaluation, eval_loss)

    def should_prune(self, number: int) -> bool:
        """Whether the pruner would stop the trial after its last reported evaluation.

        Trials that train together are compared with each other when all of them have reported before the first
        is asked about. Never true for a replicate, nor after the last evaluation: nothing is left to save.
        """
        trial = self._ledger.trial(number)
        last = max(records.curve_of(trial), default=None)
        if is_replicate(trial) or last is None:
            return False
        if self._spec.sweep.multi_objective:
            rejected = is_in_worse_half(self._spec.sweep, trial, last, self._ledger.trials())
        else:
            rejected = self._study.pruner.prune(self._study, trial)
        asked = records.asked_of(trial)
        planned = planned_evaluations(asked.config.training) if asked else None
        return rejected and (planned is None or last < planned)

    def finish(self, number: int, metrics: Mapping[str, float], reason: str = "") -> None:
        """Tell a trial complete with its final metrics; one whose objective is no possible value has diverged.

        Args:
            number: Of the trial.
            metrics: Its final figures.
            reason: Why it stopped early, or which of its adapters it leaves, if there is that to say.

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
        self._ledger.conclude(number, self._measured(metrics, reason=reason))

    def _measured(self, metrics: Mapping[str, float], source: int | None = None, reason: str = "") -> Outcome:
        """The outcome of a training that reached its end, of `source` where that was another trial's."""
        bad = [one.name for one in self._spec.sweep.metric if not one.measure.can_be(metrics[one.name])]
        if bad:
            reason = f"{bad[0]} is {metrics[bad[0]]} at the end"
            return Outcome(state="diverged", metrics=metrics, reason=reason, source=source)
        state: TrialState = "complete" if source is None else "shared"
        return Outcome(state=state, metrics=metrics, reason=reason, source=source)

    def prune(self, number: int, reason: str, metrics: Mapping[str, float] | None = None) -> None:
        """Tell a trial pruned, with what was measured until then."""
        self._ledger.conclude(number, Outcome(state="pruned", reason=reason, metrics=metrics or {}))

    def fail(self, number: int, state: TrialState, reason: str) -> None:
        """Tell a trial `diverged`, `out_of_memory` or `failed`; the sampler learns from the first two."""
        assert state in FAILURES, f"{state} is no failure"
        self._ledger.conclude(number, Outcome(state=state, reason=reason))

    def share(
        self,
        number: int,
        source: int,
        *,
        metrics: Mapping[str, float] | None = None,
        evaluations: int | None = None,
        reason: str = "",
    ) -> None:
        """Tell a trial the outcome of an equivalent one, without training it.

        Args:
            number: The trial to tell.
            source: The trial whose outcome it is. It has ended, unless `metrics` are given.
            metrics: The figures at an earlier point of the source's trajectory.
            evaluations: How much of the source's curve to copy; all of it by default.
            reason: What is to be said of these metrics, as in `finish`.
        """
        origin = self._ledger.trial(source)
        if metrics is not None:
            outcome = self._measured(metrics, source, reason)
        else:
            known = outcome_of(origin)
            assert known is not None, f"trial {source} has not ended, so trial {number} cannot share its outcome"
            state = "shared" if known.state in FINISHED_WITH_VALUE else known.state
            reason = f"as trial {source}: {known.reason}" if known.reason else ""
            outcome = Outcome(state=state, metrics=known.metrics, reason=reason, source=source)
        if outcome_of(self._ledger.trial(number)) is None:
            self._ledger.set(number, records.CURVE, records.first_of_curve(origin, evaluations))
            if records.ENGINE in origin.user_attrs:
                self._ledger.set(number, records.ENGINE, origin.user_attrs[records.ENGINE])
        self._ledger.conclude(number, outcome)

    def add_read_off(
        self, source: int, params: Mapping[str, Value], metrics: Mapping[str, float], evaluations: int, reason: str = ""
    ) -> int | None:
        """Add the trial of a shorter run that is read off the trajectory `source`.

        Args:
            source: The trial that trains.
            params: The values of the shorter run, which differ from the source's in the number of epochs.
            metrics: The shorter run's final figures.
            evaluations: How much of the source's curve is the shorter run's too.
            reason: What is to be said of the metrics, as in `finish`.

        Returns:
            Its number, None when the budget is used up.
        """
        if not self._asking.has_room():
            return None
        complete = self._ledger.trials(Told.COMPLETE)
        outcome = self._measured(metrics, source, reason)
        return self._ledger.add(
            self._shorter_runs.read_off(self._ledger.trial(source), params, evaluations, outcome, complete)
        )

    def add_branch(self, source: int, params: Mapping[str, Value], evaluations: int) -> Asked | None:
        """Add the running trial of a shorter run that branches from `source`; None when the budget is used up."""
        if not self._asking.has_room():
            return None
        number = self._ledger.add(self._shorter_runs.branch(self._ledger.trial(source), params, evaluations))
        return records.asked_of(self._ledger.trial(number))

    def branch(self, number: int, source: int, evaluations: int) -> Asked:
        """Note that a running trial branches from `source`, which has trained its first steps."""
        self._ledger.set(number, records.CURVE, records.first_of_curve(self._ledger.trial(source), evaluations))
        self._ledger.set(number, records.BRANCHED_FROM, source)
        asked = records.asked_of(self._ledger.trial(number))
        assert asked is not None, f"trial {number} has no configuration"
        return asked

    def unfinished_replicates(self) -> list[int]:
        """For each replicate that was enqueued and has not ended, the number of the trial that it repeats."""
        return [
            trial.user_attrs[records.CONFIRMS]
            for trial in self._ledger.trials()
            if is_replicate(trial) and not trial.state.is_finished()
        ]

    def enqueue_replicate(self, source_number: int, seed: int, replicate: int) -> bool:
        """Ask next for the trial `source_number` again, with `training.seed` = `seed`; not part of the budget.

        Once for each source and replicate (1, 2, ...), however often it is called: False where it was asked before.
        """
        attributes = {records.CONFIRMS: source_number, records.REPLICATE: replicate}
        if any(attributes.items() <= trial.user_attrs.items() for trial in self._ledger.trials()):
            return False
        params = self._ledger.trial(source_number).params
        self._study.enqueue_trial(params, user_attrs={**attributes, records.SEED: seed})
        return True

    def results(self) -> list[TrialResult]:
        """All trials that have a configuration, by number, from the storage alone.

        Left out are replicates that wait their turn and combinations of values that no trial can have.

        Raises:
            StorageError: a stored trial is of another version of lora_lab.
        """
        return [result for trial in self._ledger.trials() if (result := records.result_of(trial)) is not None]

    def result(self, number: int) -> TrialResult:
        """One trial that has a configuration."""
        result = records.result_of(self._ledger.trial(number))
        assert result is not None, f"trial {number} has no configuration"
        return result

    def budget(self) -> tuple[int, int]:
        """Trials of the search that have ended, and trials of the search in all; replicates apart."""
        ended = [trial for trial in self._ledger.trials() if trial.state.is_finished() and not is_replicate(trial)]
        return len(ended), self._asking.total()
