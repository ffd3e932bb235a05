"""Which trial comes next, and how many there may be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.trial import TrialState as Told
from pydantic import ValidationError

from lora_lab.common.errors import InputError
from lora_lab.search import records
from lora_lab.search.grid import Grid
from lora_lab.search.records import Asked, Outcome, is_replicate, outcome_of
from lora_lab.search.samplers import build_sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from lora_lab.search.ledger import Ledger
    from lora_lab.search.space import SearchSpace
    from lora_lab.study.spec import StudySpec

FIXED_PARAMS = "fixed_params"
"""Where Optuna keeps the values that an enqueued trial is to have."""
MAX_REFUSALS = 100


class Asking:
    """Asks Optuna for trials within the budget, and makes configurations of them."""

    def __init__(self, spec: StudySpec, study: Study, ledger: Ledger, space: SearchSpace) -> None:
        self._spec, self._study, self._ledger, self._space = spec, study, ledger, space
        self._grid = Grid(spec, space) if spec.sweep.sampler == "grid" else None

    def ask(self, reserved: int) -> Asked | None:
        """The next trial to train, None when the budget, less what is reserved, is used up."""
        reason = ""
        for _ in range(MAX_REFUSALS):
            trials = self._ledger.trials()
            unclaimed = next((one for one in trials if _is_unclaimed(one)), None)
            if unclaimed is None and not self._has_next(trials, reserved):
                return None
            trial = self._study.ask() if unclaimed is None else self._ledger.live(unclaimed.number)
            asked = self._configure(trial)
            if isinstance(asked, Asked):
                return asked
            reason = asked
        raise InputError(
            f"sweep.parameters: the last {MAX_REFUSALS} combinations of values are impossible ({reason}); "
            "remove such values, or search a parameter only `when` another allows it"
        )

    def running(self) -> list[Asked]:
        """Trials without an outcome, and the telling of outcomes that were recorded only."""
        unfinished: list[Asked] = []
        for trial in self._ledger.trials(Told.RUNNING):
            outcome = outcome_of(trial)
            if outcome is not None:
                self._ledger.tell(trial, outcome)
                continue
            asked = records.asked_of(trial) or self._configure(self._ledger.live(trial.number))
            if isinstance(asked, Asked):
                unfinished.append(asked)
        return unfinished

    def total(self) -> int:
        """Trials of the search in all."""
        sizes = [self._spec.sweep.n_trials, None if self._grid is None else len(self._grid)]
        return min(size for size in sizes if size is not None)

    def has_room(self) -> bool:
        """Whether one more trial is within the budget."""
        return sum(not is_replicate(trial) for trial in self._ledger.trials()) < self.total()

    def _has_next(self, trials: Sequence[FrozenTrial], reserved: int) -> bool:
        """Whether there is a trial to ask for; puts the next cell of a grid into the queue."""
        if any(trial.state is Told.WAITING for trial in trials):
            return True
        searched = [trial for trial in trials if not is_replicate(trial)]
        if len(searched) + reserved >= self.total():
            return False
        if self._grid is not None:
            cell = self._grid.next_cell([trial.system_attrs.get(FIXED_PARAMS, {}) for trial in searched])
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
                config = config.changed(training={"seed": attributes[records.SEED]})
        except ValidationError as error:
            reason = records.validation_text(error)
            self._ledger.conclude(trial.number, Outcome(state="failed", reason=reason))
            return reason
        asked = Asked(
            number=trial.number,
            params=params,
            config=config,
            replicate=attributes.get(records.REPLICATE, 0),
            confirms=attributes.get(records.CONFIRMS),
        )
        self._ledger.set(trial.number, records.ASKED, asked.record())
        return asked


def _is_unclaimed(trial: FrozenTrial) -> bool:
    """Whether a trial was made that nobody knows of: the database's answer was lost with the connection."""
    return trial.state is Told.RUNNING and not {records.ASKED, records.OUTCOME} & set(trial.user_attrs)
