"""`transformers.Trainer` with a trial's own order of examples, loss and schedule."""

from __future__ import annotations

import random
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler
from transformers.trainer_callback import PrinterCallback, TrainerState

from lora_lab.training.reference.optimizer import make_optimizer
from lora_lab.training.schedule import decay_steps, warmup_steps
from lora_lab.training.trial import StepFigures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from lora_lab.study.settings import TrainingSettings
    from lora_lab.training.schedule import BatchPlan

OPTIMIZERS = {"adamw_torch": "adamw_torch_fused", "adamw_8bit": "adamw_8bit", "sgd": "sgd"}
"""What `TrainingArguments` calls them."""


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step, and the time that it took."""

    figures: StepFigures
    seconds: float


class ReferenceTrainer(Trainer):  # type: ignore[misc]  # transformers types it as Any
    """Trains a PEFT model.

    Args:
        model: The PEFT model.
        training: The trial's settings.
        plan: Which examples make each step.
        collate: Makes the inputs of a micro-batch from the indices of its examples.
        loss_of: The part of a micro-batch in the step's loss; takes its inputs and its number in the step.
        folder: Where the state is put that `Trainer` resumes from.
        device: Where the model is.
    """

    def __init__(
        self,
        model: Any,
        training: TrainingSettings,
        *,
        plan: BatchPlan,
        collate: Callable[[Sequence[int]], dict[str, Tensor]],
        loss_of: Callable[[Mapping[str, Tensor], int], Tensor],
        folder: Path,
        device: torch.device,
    ) -> None:
        self._batches, self._collate, self._loss_of, self._folder = _EpochBatches(plan), collate, loss_of, folder
        self.parts: list[Tensor] = []
        """The losses of the micro-batches of the step in work."""
        with _global_random_state_kept():
            super().__init__(
                model=model,
                args=_arguments(training, plan.total_steps, folder, device),
                # Says that the loss is divided already by the tokens of the whole step; `compute_loss` calls it itself.
                compute_loss_func=loss_of,
            )
        self.remove_callback(PrinterCallback)
        self.optimizer = make_optimizer(self, training)
        self.lr_scheduler = _scheduler(self.optimizer, training, plan.total_steps)

    def get_train_dataloader(self) -> DataLoader[int]:
        """The trial's micro-batches."""
        rows: Any = range(sum(map(len, self._batches)))  # the data set is its own indices, until `collate`
        # Of its own generator, because iterating draws a seed.
        return _Loader(
            rows, batch_sampler=self._batches, collate_fn=self._collate, generator=torch.Generator().manual_seed(0)
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The micro-batch's part of the step's loss."""
        del model, return_outputs, num_items_in_batch
        loss = self._loss_of(inputs, len(self.parts))
        self.parts.append(loss.detach())
        return loss

    def skip(self, steps: int) -> None:
        """Bring the schedule to where it is after so many steps."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the steps of the optimizer came before, in another process
            for _ in range(steps):
                self.lr_scheduler.step()

    def train_from(self, step: int, hand_over: Callable[[Step], bool], before_first: Callable[[], None]) -> None:
        """Train from the optimizer step after `step` to the end.

        Args:
            step: Steps that are done; model, optimizer and schedule are there already.
            hand_over: Called after every step; training ends when it returns False.
            before_first: Called before the very first step changes the parameters.
        """
        self.add_callback(_Handing(self, hand_over, before_first))
        if step == 0:
            self.train()
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        state = self._folder / "trainer_state.json"
        rows = self.args.per_device_train_batch_size
        TrainerState(global_step=step, logging_steps=1, train_batch_size=rows).save_to_json(str(state))
        try:
            self.train(resume_from_checkpoint=str(self._folder))
        finally:
            state.unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Nothing: the weights are in the model already."""


class _Handing(TrainerCallback):  # type: ignore[misc]  # transformers types it as Any
    """Hands every optimizer step's figures over, and lets `Trainer` end when nobody wants the next."""

    def __init__(
        self, trainer: ReferenceTrainer, hand_over: Callable[[Step], bool], before_first: Callable[[], None]
    ) -> None:
        self._trainer, self._hand_over, self._before_first = trainer, hand_over, before_first
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Before every step."""
        del args, state, control
        self._started = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Between the gradients and the optimizer."""
        del args, control
        if state.global_step == 0:
            self._before_first()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """After every step, and once more at the end with a summary."""
        del args, state
        if "grad_norm" not in logs:
            return
        loss = sum(torch.stack(self._trainer.parts).tolist())
        self._trainer.parts.clear()
        seconds = time.perf_counter() - self._started
        figures = StepFigures(loss, float(logs["grad_norm"]), float(logs["learning_rate"]))
        if not self._hand_over(Step(figures, seconds)):
            control.should_training_stop = True


class _EpochBatches:
    """The micro-batches of one epoch, as lists of indices."""

    def __init__(self, plan: BatchPlan) -> None:
        self._plan = plan
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch."""
        self._epoch = epoch

    def _of_epoch(self) -> list[np.ndarray]:
        per_epoch = self._plan.steps_per_epoch
        steps = range(self._epoch * per_epoch, (self._epoch + 1) * per_epoch)
        return [rows for step in steps for rows in self._plan.micro_batches(step)]

    def __len__(self) -> int:
        return len(self._of_epoch())

    def __iter__(self) -> Iterator[list[int]]:
        return iter([rows.tolist() for rows in self._of_epoch()])


class _Loader(DataLoader[int]):
    def set_epoch(self, epoch: int) -> None:
        """Called by `Trainer` before every epoch."""
        batches: Any = self.batch_sampler
        batches.set_epoch(epoch)


def _scheduler(optimizer: Any, training: TrainingSettings, total_steps: int) -> Any:
    specific = {}
    if training.schedule.has_decay:
        specific["num_decay_steps"] = decay_steps(training, total_steps)
    return get_scheduler(
        training.lr_scheduler_type,
        optimizer,
        num_warmup_steps=warmup_steps(training, total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=specific,
    )


def _arguments(training: TrainingSettings, total_steps: int, folder: Path, device: torch.device) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        max_steps=total_steps,
        optim=OPTIMIZERS[training.optim],
        seed=training.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        dataloader_pin_memory=False,
        use_cpu=device.type == "cpu",
    )
    assert arguments.device.type == device.type
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001 -- as `Trainer` does, to keep it from DataParallel
    return arguments


@contextmanager
def _global_random_state_kept() -> Iterator[None]:
    """`Trainer` seeds all global generators when it is made."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 -- the global one is meant
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
