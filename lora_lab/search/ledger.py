"""The trials of one study in Optuna's storage: each is read as it stands there, and each outcome is written once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial
from optuna.trial import TrialState as Told

from lora_lab.common.errors import StorageError
from lora_lab.search import records
from lora_lab.search.records import outcome_of
from lora_lab.search.telling import INFEASIBLE, as_told

if TYPE_CHECKING:
    from optuna import Study
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

    from lora_lab.search.records import Outcome
    from lora_lab.study.sweep import SweepSettings

CONSTRAINT = "trainable"
"""Optuna's constraint of all trials: above 0 for one that diverged or did not fit on the device."""


class Ledger:
    """Reads trials, and tells their outcomes so that a kill between two writes loses none."""

    def __init__(self, sweep: SweepSettings, study: Study, storage: BaseStorage) -> None:
        self._sweep, self._study, self._storage = sweep, study, storage
        self._study_id = storage.get_study_id_from_name(study.study_name)

    def trials(self, *states: Told) -> list[FrozenTrial]:
        """All trials, or those in one of these states, by number."""
        return self._study.get_trials(deepcopy=False, states=states or None)

    def trial(self, number: int) -> FrozenTrial:
        """One trial as it stands in the storage."""
        return self._storage.get_trial(self._id(number))

    def live(self, number: int) -> Trial:
        """A trial as Optuna's samplers and pruners take it."""
        return Trial(self._study, self._id(number))

    def add(self, trial: FrozenTrial) -> int:
        """Store a whole trial in one transaction; its number."""
        trial_id = self._storage.create_new_trial(self._study_id, template_trial=trial)
        return self._storage.get_trial_number_from_id(trial_id)

    def set(self, number: int, key: str, value: Any) -> None:
        """Keep a JSON value with a trial that has not ended."""
        self._storage.set_trial_user_attr(self._id(number), key, value)

    def set_intermediate(self, number: int, evaluation: int, value: float) -> None:
        """Keep the value that Optuna's pruners compare."""
        self._storage.set_trial_intermediate_value(self._id(number), evaluation, value)

    def conclude(self, number: int, outcome: Outcome) -> None:
        """Record how a trial ended, then tell Optuna; a second call with the same outcome changes nothing."""
        trial = self.trial(number)
        known = outcome_of(trial)
        if known is None and not trial.state.is_finished():
            self.set(number, records.OUTCOME, outcome.record())
        elif known is None or known.state != outcome.state:
            state = known.state if known else trial.state.name.lower()
            raise StorageError(
                f"trial {number} is already {state} in the storage, so it cannot become {outcome.state}; "
                "does another process write to this study?"
            )
        if not trial.state.is_finished():
            self.tell(trial, known or outcome)

    def tell(self, trial: FrozenTrial, outcome: Outcome) -> None:
        """Tell Optuna an outcome that is recorded."""
        others = self.trials(Told.COMPLETE) if outcome.state in INFEASIBLE else []
        state, values = as_told(outcome, self._sweep, others)
        if outcome.state != "failed" and CONSTRAINT not in trial.constraints:
            self.live(trial.number).set_constraint(CONSTRAINT, 1 if outcome.state in INFEASIBLE else -1)
        try:
            self._study.tell(trial.number, values, state)
        except UpdateFinishedTrialError:
            # A connection that breaks between the commit and its answer: the repeated write finds its own.
            if self.trial(trial.number).state is not state:
                raise

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
