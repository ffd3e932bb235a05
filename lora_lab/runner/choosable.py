"""Whose adapters are kept while a study runs: those of the trials that may yet be chosen."""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import finished

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult
    from lora_lab.study.sweep import SweepSettings

ALWAYS_KEPT = 3


class Choosable:
    """The trials that may yet be chosen: those near the best, and in any case the first three.

    Told one result at a time, at a cost that does not grow with the study: the bound only falls while the best loss
    does, so what is out stays out, and is forgotten.

    Args:
        base_loss: Of the bare base, in nats per token.
        margin: Share of the best trial's gain over the base within which a trial may be chosen; None where every
            trial may be.
    """

    def __init__(self, base_loss: float, margin: float | None) -> None:
        self._base_loss, self._margin = base_loss, margin
        self._ranked: list[tuple[float, int]] = []
        """Loss and number of those that are not out, best first."""

    @classmethod
    def of(cls, sweep: SweepSettings, base_losses: tuple[float, float | None] | None) -> Choosable:
        """For a sweep; of several metrics there is no best trial, and where finalists are retrained, that decides."""
        assert base_losses is not None, "the bare base is measured before the first trial"
        return cls(base_losses[0], None if sweep.multi_objective or sweep.confirm else sweep.verdict.margin)

    def add(self, result: TrialResult) -> None:
        """Take in a trial that ended; one without a loss, or a retraining, can never be chosen."""
        for _, loss in finished([result]):
            insort(self._ranked, (loss, result.number))

    def take_out(self) -> list[int]:
        """The trials that can be chosen no more since this was last called."""
        out: list[int] = []
        if self._margin is None or not self._ranked:
            return out
        best = self._ranked[0][0]
        bound = best + self._margin * max(0.0, self._base_loss - best)
        while len(self._ranked) > ALWAYS_KEPT and self._ranked[-1][0] > bound:
            out.append(self._ranked.pop()[1])
        return out
