"""How far a trial has come on its way through its optimizer steps, and what is due next; alike on every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.study.best import BestSoFar  # noqa: TC001 -- pydantic reads the annotation of Counters
from lora_lab.training.milestones import planned_milestones
from lora_lab.training.schedule import BatchPlan, learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy as np
    from torch import Tensor

    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.study.best import Judged
    from lora_lab.study.settings import TrainingSettings, TrialConfig
    from lora_lab.training.milestones import PlannedMilestone


@dataclass(slots=True)
class Counters:
    """What a trial has done so far, in numbers; saved with every checkpoint."""

    step: int = 0
    """Finished optimizer steps."""
    last_evaluation: int = 0
    """Number of the newest evaluation."""
    train_seconds: float = 0.0
    """The trial's share, by floating-point operations, of the time of the steps it took part in."""
    eval_seconds: float = 0.0
    """The trial's share of the time of its evaluations: an equal one with those that were evaluated beside it."""
    train_tokens: int = 0
    """Tokens that went through the model for this trial, padding not counted."""
    best: BestSoFar | None = None
    """Where the trial is to leave the adapter of its best evaluation."""


class TrialProgress:
    """A trial's way through its optimizer steps: which it has made, what the next one consists of, and what is due.

    Args:
        training: The trial's settings.
        train: The examples that it trains on.
    """

    def __init__(self, training: TrainingSettings, train: TokenizedDataset) -> None:
        self.plan = BatchPlan(len(train), training)
        self.counters = Counters()
        self.milestones: list[PlannedMilestone] = []
        """Where shorter runs that the trial contains end or part from it, as far as that is still ahead."""
        self.best_parameters: Tensor | None = None
        """The trained parameters [P] of the best evaluation (`counters.best`), on the CPU."""
        self._training, self._train = training, train

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        return self.counters.step

    @property
    def finished(self) -> bool:
        """Whether the last optimizer step is done."""
        return self.step >= self.plan.total_steps

    @property
    def due_evaluation(self) -> int | None:
        """The number of the evaluation to make now, or None."""
        number = self.plan.evaluation(self.step)
        return number if number is not None and number > self.counters.last_evaluation else None

    @property
    def micro_batches(self) -> list[np.ndarray]:
        """Indices of the training examples of every micro-batch of the next optimizer step."""
        return self.plan.micro_batches(self.step)

    @property
    def learning_rate(self) -> float:
        """The rate of the next optimizer step."""
        return self._training.learning_rate * learning_rate_factor(self.step, self.plan.total_steps, self._training)

    @property
    def is_logged(self) -> bool:
        """Whether the newest optimizer step is told (every `logging_steps`); the last one always is."""
        return self.step % self._training.logging_steps == 0 or self.finished

    def tokens(self, rows: Iterable[int]) -> int:
        """Tokens of these training examples, without padding."""
        return sum(len(self._train.input_ids[index]) for index in rows)

    def expect(self, shorter: Sequence[TrialConfig]) -> None:
        """Plan the milestones of these shorter runs, but for those that the trial has passed already."""
        ahead = planned_milestones(len(self._train), shorter)
        self.milestones = [milestone for milestone in ahead if milestone.step >= self.step]

    def evaluated(self, judged: Judged, values: Callable[[], Tensor]) -> None:
        """Count an evaluation that was made; if it is the best one, `values` gives the parameters [P] to keep."""
        self.counters.last_evaluation = judged.now.evaluation
        self.counters.best = judged.so_far
        if judged.so_far is not None and judged.is_left:
            self.best_parameters = values()

    def advance(self, seconds: float, tokens: int) -> None:
        """Count one more finished optimizer step, with the seconds and the tokens that it took."""
        self.counters.step += 1
        self.counters.train_seconds += seconds
        self.counters.train_tokens += tokens


def training_flops(tokens: int, base_parameters: int, trained_parameters: int) -> int:
    """Floating-point operations of training on `tokens`.

    These are 2 + 2 per parameter of the frozen base and token (forward, and the gradient of the input), and 2 + 4 per
    trained parameter (also its own gradient).
    """
    return tokens * (4 * base_parameters + 6 * trained_parameters)
