"""When a trial steps: learning-rate factors, and which examples make each optimizer step.

Both are pure functions of the settings and the step number, so that a trial can be taken up at any step.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from lora_lab.data.order import batches

if TYPE_CHECKING:
    import numpy as np

    from lora_lab.study.settings import TrainingSettings


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
    warmup = training.warmup_steps or math.ceil(training.warmup_ratio * total_steps)
    match training.lr_scheduler_type:
        case "constant":
            return 1.0
        case "constant_with_warmup":
            return step / warmup if step < warmup else 1.0
    if step < warmup:
        return step / warmup
    falling_steps = max(1, total_steps - warmup)
    if training.lr_scheduler_type == "linear":
        return max(0.0, (total_steps - step) / falling_steps)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((step - warmup) / falling_steps))))
