"""Trials made of the shorter runs of a trajectory: read off at their milestone, or branching from it there.

Each is stored whole in one transaction, with the values, the configuration, the curve so far and, where it is over,
the outcome; so a kill leaves it or leaves nothing. The copied part of a curve is no intermediate value of Optuna's:
those are what pruners compare, and one training counts there once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState as Told
from optuna.trial import create_trial

from lora_lab.search import records
from lora_lab.search.asking import FIXED_PARAMS
from lora_lab.search.ledger import CONSTRAINT
from lora_lab.search.records import Asked
from lora_lab.search.telling import INFEASIBLE, as_told

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from optuna.trial import FrozenTrial

    from lora_lab.search.records import Outcome
    from lora_lab.search.space import SearchSpace
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value

GENERATION = ":generation"
"""How the name of the attribute ends in which Optuna's genetic samplers keep a trial's generation."""


class ShorterRuns:
    """Makes trials of the shorter runs that the trajectory `source` contains.

    `evaluations` is how much of the trajectory's curve is the shorter run's too.
    """

    def __init__(self, spec: StudySpec, space: SearchSpace) -> None:
        self._spec, self._space = spec, space

    def read_off(
        self,
        source: FrozenTrial,
        params: Mapping[str, Value],
        evaluations: int,
        outcome: Outcome,
        complete: Iterable[FrozenTrial],
    ) -> FrozenTrial:
        """A trial that is over, with its outcome, which the complete trials rate where it is infeasible."""
        state, values = as_told(outcome, self._spec.sweep, complete)
        return create_trial(
            state=state,
            values=values,
            constraints={CONSTRAINT: 1 if outcome.state in INFEASIBLE else -1},
            **self._common(source, params, evaluations, {records.OUTCOME: outcome.record()}),
        )

    def branch(self, source: FrozenTrial, params: Mapping[str, Value], evaluations: int) -> FrozenTrial:
        """A running trial that goes on by itself from its milestone."""
        branched = {records.BRANCHED_FROM: source.number}
        return create_trial(state=Told.RUNNING, **self._common(source, params, evaluations, branched))

    def _common(
        self, source: FrozenTrial, params: Mapping[str, Value], evaluations: int, attributes: Mapping[str, Any]
    ) -> dict[str, Any]:
        asked = Asked(number=-1, params=params, config=self._spec.trial_config(params))
        stored, distributions = self._space.recorded(params)
        generation = {key: value for key, value in source.system_attrs.items() if key.endswith(GENERATION)}
        return {
            "params": stored,
            "distributions": distributions,
            "user_attrs": {
                records.ASKED: asked.record(),
                records.CURVE: records.first_of_curve(source, evaluations),
                **{key: value for key, value in source.user_attrs.items() if key == records.ENGINE},
                **attributes,
            },
            "system_attrs": {FIXED_PARAMS: stored, **generation},
        }
