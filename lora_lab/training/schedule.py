"""When a trial steps: learning-rate factors, and which examples make each optimizer step.

Both are pure functions of the settings and the step number, so that a trial can be taken up at any step.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from lora_lab.data.order import batches
from lora_lab.study.trajectory import shared_rates

if TYPE_CHECKING:
    import numpy as np

    from lora_lab.study.settings import TrainingSettings

DEFAULT_DECAY_RATIO = 0.1
"""Share of all steps in which a schedule with a decay falls, where the study does not say."""


class BatchPlan:
    """The examples of every optimizer step of one trial.

    Gradient accumulation stays inside an epoch, as in `transformers.Trainer`: the last optimizer step of an
    epoch may have fewer micro-batches, and the last micro-batch fewer rows.
    """

    def __init__(self, examples: int, training: TrainingSettings) -> None:
        self._examples = examples
        self._training = training
        micro_batches = math.ceil(examples / training.per_device_train_batch_size)
        self.steps_per_epoch = math.ceil(micro_batches / training.gradient_accumulation_steps)
        self.total_steps = training.max_steps or training.num_train_epochs * self.steps_per_epoch

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """Index arrays of the micro-batches of optimizer step `step` (from 0)."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        accumulation = self._training.gradient_accumulation_steps
        whole_epoch = _epoch_batches(
            self._examples, self._training.per_device_train_batch_size, self._training.seed, epoch
        )
        return list(whole_epoch[step_in_epoch * accumulation : (step_in_epoch + 1) * accumulation])

    def epoch(self, step: int) -> float:
        """Epochs done after `step` optimizer steps."""
        return step / self.steps_per_epoch

    def evaluation(self, step: int) -> int | None:
        """The number (from 1) of the evaluation that is due after `step` optimizer steps, or None.

        Evaluations fall on the ends of epochs, or on every `eval_steps`-th step, and on the last step.
        """
        interval = self._training.eval_steps or self.steps_per_epoch
        if step > 0 and (step % interval == 0 or step == self.total_steps):
            return math.ceil(step / interval)
        return None


@lru_cache(maxsize=256)
def _epoch_batches(examples: int, batch_size: int, seed: int, epoch: int) -> tuple[np.ndarray, ...]:
    return tuple(batches(examples, batch_size, seed, epoch))


def learning_rate_factor(step: int, total_steps: int, training: TrainingSettings) -> float:
    """The factor on `learning_rate` at optimizer step `step` (from 0), as in `transformers.get_scheduler`."""
    warmup = warmup_steps(training, total_steps)
    if step < warmup:
        return step / warmup
    match training.lr_scheduler_type:
        case "constant" | "constant_with_warmup":
            return 1.0
        case "linear":
            return max(0.0, (total_steps - step) / max(1, total_steps - warmup))
        case "cosine":
            return _half_cosine((step - warmup) / max(1, total_steps - warmup))
        case "warmup_stable_decay":
            decay = decay_steps(training, total_steps)
            into_decay = step - (total_steps - decay)
            return 1.0 if into_decay < 0 else _half_cosine(into_decay / decay)


def shared_steps(training: TrainingSettings, total_steps: int) -> int:
    """The leading optimizer steps that the same settings take with the same rates in every longer training."""
    match shared_rates(training):
        case "all":
            return total_steps
        case "to the decay":
            return max(0, total_steps - decay_steps(training, total_steps))
        case "nothing":
            return 0


def warmup_steps(training: TrainingSettings, total_steps: int) -> int:
    """Optimizer steps in which the rate rises from 0."""
    return training.warmup_steps or math.ceil(training.warmup_ratio * total_steps)


def decay_steps(training: TrainingSettings, total_steps: int) -> int:
    """Optimizer steps at the end in which a schedule with a decay falls to 0."""
    return training.decay_steps or math.ceil((training.decay_ratio or DEFAULT_DECAY_RATIO) * total_steps)


def _half_cosine(progress: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
