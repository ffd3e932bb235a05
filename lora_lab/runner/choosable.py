"""Whose adapters are kept while a study runs: those of the trials that may yet be chosen."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

from lora_lab.analysis.comparison import within
from lora_lab.analysis.selection import finished
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult
    from lora_lab.study.sweep import SweepSettings, Verdict

ALWAYS_KEPT = 3


class Choosable:
    """The trials that may yet be chosen: those near the best, and in any case the first three.

    Told one result at a time, at a cost that does not grow with the study: the bound moves with the best trial alone,
    and only to the better, so what is out stays out, and is forgotten.

    Args:
        base_value: Of the bare base.
        verdict: What is near enough to be chosen; None where every trial may be.
        measure: What the verdict is about.
    """

    def __init__(self, base_value: float, verdict: Verdict | None, measure: Measure = EVAL_LOSS) -> None:
        self._base_value, self._verdict, self._measure = base_value, verdict, measure
        self._ranked: list[tuple[float, int]] = []
        """Value as a loss and number of those that are not out, best first."""

    @classmethod
    def of(cls, sweep: SweepSettings, base_value: float) -> Choosable:
        """For a sweep; of several metrics there is no best trial, and where finalists are retrained, that decides."""
        verdict = None if sweep.multi_objective or sweep.confirm else sweep.verdict
        return cls(base_value, verdict, sweep.judged)

    def add(self, result: TrialResult) -> None:
        """Take in a trial that ended; one without a value, or a retraining, can never be chosen."""
        for _, value in finished([result], self._measure.name):
            insort(self._ranked, (self._measure.as_loss(value), result.number))

    def take_out(self) -> list[int]:
        """The trials that can be chosen no more since this was last called."""
        out: list[int] = []
        if self._verdict is None or not self._ranked:
            return out
        best = self._ranked[0][0]
        width = self._verdict.width(self._measure.as_loss(self._base_value) - best)
        while len(self._ranked) > ALWAYS_KEPT and not within(self._ranked[-1][0] - best, width):
            out.append(self._ranked.pop()[1])
        return out
