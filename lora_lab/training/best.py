"""A trial as it was at its best evaluation: judged at every evaluation, and put back where that adapter is left."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.paired import token_mean
from lora_lab.study.best import Measured, judge

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.analysis.paired import ExampleLosses
    from lora_lab.study.best import Judged
    from lora_lab.training.milestones import PlannedMilestone
    from lora_lab.training.scoring import Scored, Tested
    from lora_lab.training.trial import Trial


def judged_now(trial: Trial, losses: ExampleLosses, scored: Scored | None) -> Judged:
    """Compare the evaluation that is due with those before it; the trial is as it was afterwards.

    Args:
        trial: The trial.
        losses: Its losses on the evaluation rows.
        scored: What else this evaluation measured of it, if anything.
    """
    progress = trial.progress
    number = progress.due_evaluation
    assert number is not None
    scores = {} if scored is None else scored.values
    measured = {name: value for name, value in scores.items() if math.isfinite(value)}  # without those that failed
    now = Measured(number, progress.step, token_mean(losses), measured)
    return judge(trial.config.training, progress.counters.best, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """All that one evaluation measured of a trial."""

    trial: Trial
    losses: ExampleLosses
    """Of every evaluation row, as the trial is now."""
    judged: Judged
    now: Scored | None
    """Its scores as it is now, where they are measured at every evaluation."""
    left: Scored | None
    """Those of the adapter that is left here, where they are measured at the end."""
    tested: Tested | None
    """What that adapter is worth on test rows."""

    @property
    def scores_now(self) -> dict[str, float]:
        """The scores that are known of the trial as it is now."""
        known = (self.now, self.left if self.judged.is_left else None)
        return {name: value for one in known if one is not None for name, value in one.values.items()}

    @property
    def figures_left(self) -> dict[str, float]:
        """Scores and figures of test rows of the adapter that is left; not a number where a metric failed."""
        figures = dict.fromkeys(() if self.now is None else self.now.values, math.nan) | dict(self.judged.left.scores)
        for measured in (self.left, self.tested):
            figures |= {} if measured is None else measured.values
        return figures

    @property
    def failures(self) -> dict[str, str]:
        """Why metrics of one's own are missing, by name."""
        scored = (self.now, self.left, self.tested)
        return {name: why for one in scored if one is not None for name, why in one.failures.items()}


def ends(trial: Trial, judged: Judged) -> bool:
    """Whether a trial is over after this evaluation."""
    return trial.progress.finished or judged.stops


def read_off(trial: Trial, judged: Judged) -> list[PlannedMilestone]:
    """The shorter runs that end where a trial is now.

    Where it stops early, so do all runs that have not parted from it: they would have made the same evaluations.
    """
    here = trial.progress.step
    ahead = [one for one in trial.progress.milestones if one.step >= here]
    return [one for one in ahead if judged.stops or (one.ends and one.step == here)]


@contextmanager
def as_left(trial: Trial, judged: Judged) -> Iterator[None]:
    """Let a trial have the parameters that it leaves if it ends here; afterwards it has those that it had."""
    if judged.is_left:
        yield
        return
    best, newest = trial.progress.best_parameters, trial.values()
    assert best is not None, f"the parameters of {judged.left} were not kept"
    trial.put(best)
    try:
        yield
    finally:
        trial.put(newest)
