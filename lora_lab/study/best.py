"""The best evaluation of a trial, and when its evaluations get no better, by the rules of `transformers.Trainer`.

`Trainer` keeps the first of equal evaluations as the best. Its `EarlyStoppingCallback` compares each evaluation with
the best one *before* it: one that is better by no more than the threshold becomes the best, and yet is one without
gain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003 -- pydantic reads the annotation in checkpoints
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_lab.study.measures import BEST_EVALUATION, BEST_STEP, EVAL_LOSS, MEASURES

if TYPE_CHECKING:
    from lora_lab.study.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class Measured:
    """What one evaluation of a trial measured."""

    evaluation: int
    """Its number from 1: the epoch, unless `eval_steps` is set."""
    step: int
    """Optimizer steps before it."""
    eval_loss: float
    scores: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"evaluation {self.evaluation} (step {self.step})"

    def loss(self, metric: str) -> float:
        """What it measured by this name, on an axis on which less is better; infinite where that failed."""
        value = self.eval_loss if metric == EVAL_LOSS.name else self.scores.get(metric)
        return math.inf if value is None else MEASURES[metric].as_loss(value)


@dataclass(frozen=True, slots=True)
class BestSoFar:
    """The best evaluation of a trial up to now."""

    measured: Measured
    without_gain: int = 0
    """How many evaluations in a row, up to the newest one, did not gain enough on the best before them."""


@dataclass(frozen=True, slots=True)
class Judged:
    """An evaluation of a trial, compared with those before it."""

    training: TrainingSettings
    now: Measured
    so_far: BestSoFar | None
    """With `now` taken in; None where the trial leaves its last adapter, whatever that measures."""

    @property
    def left(self) -> Measured:
        """The evaluation whose adapter and figures the trial leaves if it ends here."""
        return self.now if self.so_far is None else self.so_far.measured

    @property
    def is_left(self) -> bool:
        """Whether the trial, ending here, leaves the adapter that it has now."""
        return self.left.evaluation == self.now.evaluation

    @property
    def stops(self) -> bool:
        """Whether the patience of the trial is over."""
        patience = self.training.early_stopping_patience
        return patience is not None and self.so_far is not None and self.so_far.without_gain >= patience

    @property
    def figures(self) -> dict[str, float]:
        """Which evaluation is left, as figures of the trial; empty where that is the last one by rule."""
        if self.so_far is None:
            return {}
        return {BEST_EVALUATION.name: float(self.left.evaluation), BEST_STEP.name: float(self.left.step)}

    def words(self, *, is_last_step: bool) -> str:
        """Why the trial ends here, if it had steps left, and which adapter it leaves, if not its last one."""
        said = []
        metric, threshold = self.training.metric_for_best_model, self.training.early_stopping_threshold
        if not is_last_step:
            enough = f" by more than {threshold:g}" if threshold else ""
            count = self.training.early_stopping_patience
            evaluations = "1 evaluation" if count == 1 else f"{count} evaluations"
            said.append(f"stopped early at {self.now}: {evaluations} without a better {metric}{enough}")
        if not self.is_left:
            said.append(f"its adapter is that of {self.left}, the best by {metric}")
        return "; ".join(said)


def judge(training: TrainingSettings, before: BestSoFar | None, now: Measured) -> Judged:
    """Compare an evaluation with the best of those before it; None where it is the first."""
    if not training.load_best_model_at_end:
        return Judged(training, now, None)
    if before is None:
        return Judged(training, now, BestSoFar(now))
    metric = training.metric_for_best_model
    gain = before.measured.loss(metric) - now.loss(metric)  # not a number, and so no gain, where both failed
    without_gain = 0 if gain > 0 and gain > training.early_stopping_threshold else before.without_gain + 1
    return Judged(training, now, BestSoFar(now if gain > 0 else before.measured, without_gain))
