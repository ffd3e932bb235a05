"""The reference engine: `transformers.Trainer` and `peft`, one trial at a time.

It trains what the packed engine does not do exactly (`lora_lab.study.engines` says what), with the same
configuration in and the same events out: same order of examples, loss denominator, schedule, dropout masks and
evaluations. For a trial that both can train, both give the same numbers.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from lora_lab.common.errors import TrainingError
from lora_lab.study.events import Diverged, Failed, Finished, Logged, OutOfMemory, TrialEvent
from lora_lab.training.assessment import Assessor
from lora_lab.training.base.adapters import write_adapter
from lora_lab.training.checkpoint import checkpoint_identity, read_checkpoint, write_checkpoint
from lora_lab.training.device import free_cached_memory, is_out_of_memory
from lora_lab.training.memory.probe import TrialMemory, does_not_fit
from lora_lab.training.milestones import planned_milestones
from lora_lab.training.reference.forward import ReferenceModel
from lora_lab.training.reference.model import adapter_tensors, for_plain_base, sharing_copy
from lora_lab.training.reference.trial import ReferenceTrial
from lora_lab.training.schedule import BatchPlan

if TYPE_CHECKING:
    from collections.abc import Generator, Hashable, Iterator, Sequence
    from pathlib import Path

    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.datasets import DataCatalog


class ReferenceEngine:
    """Trains one trial at a time, with the interface of `PackedEngine`.

    Args:
        base: The frozen base. To share it with a packed engine, make this engine first: it keeps the modules as
            they are now, while the tensors in them stay shared.
        data: Where the trials' token sets come from.
        trials_folder: Each trial keeps its checkpoint, evaluations and adapter in a folder of its own here.
    """

    def __init__(self, base: Base, data: DataCatalog, trials_folder: Path) -> None:
        self._base = replace(base, model=sharing_copy(base.model))
        self._data = data
        self._folder = trials_folder
        self._trial: ReferenceTrial | None = None
        self._memory: dict[Hashable, TrialMemory] = {}
        self.tokens_per_second = 0.0
        """Trained tokens per second, in the newest step."""
        self.set_aside: list[int] = []
        """Always empty: a trial that does not fit alone has no other chance."""
        self._assessor: Assessor[ReferenceTrial] = Assessor(
            self._base,
            ReferenceModel(self._base),
            data,
            trials_folder,
            memory=self._memory_figures,
            save_adapter=self._save_adapter,
        )

    @property
    def active(self) -> tuple[int, ...]:
        """The number of the trial in training, where there is one."""
        return (self._trial.number,) if self._trial is not None else ()

    def trial_folder(self, number: int) -> Path:
        """Where a trial's files lie."""
        return self._folder / f"{number:04d}"

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and loss on the forgetting text of the bare base, measured once per data settings."""
        return self._assessor.base_losses(config)

    def admit(self, number: int, config: TrialConfig, shorter: Sequence[TrialConfig] = ()) -> None:
        """Take up a trial; it goes on from its checkpoint where there is one.

        Args:
            number: The trial.
            config: What it trains.
            shorter: Configurations with fewer epochs whose results are wanted too, as in `PackedEngine.admit`.

        Raises:
            InputError: PEFT cannot do this to this base, or the data cannot be right.
            CheckpointError: its checkpoint is damaged.
        """
        assert self._trial is None, "the reference engine trains one trial at a time"
        data, folder = self._data.splits(config.data), self.trial_folder(number)
        plan = BatchPlan(len(data.train), config.training)
        trial = ReferenceTrial(number, config, self._base, plan=plan, data=data, folder=folder / "trainer")
        self._measure_memory(trial)
        saved = read_checkpoint(folder / "checkpoint", checkpoint_identity(config, data), trial.state_sizes)
        if saved is not None:
            trial.restore(*saved)
        ahead = planned_milestones(len(data.train), shorter)
        trial.milestones = [milestone for milestone in ahead if milestone.step >= trial.progress.step]
        self._trial = trial

    def _measure_memory(self, trial: ReferenceTrial) -> None:
        """Count the trial's memory at its largest step, once per distinct shape."""
        shape, rows = _memory_shape(trial)
        if shape in self._memory:
            return
        device = self._base.device
        on_cuda = device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        try:
            live = trial.count_step(rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            free_cached_memory()  # it may try; its first step will tell
            return
        self._memory[shape] = TrialMemory(
            predicted=None,
            measured=live,
            allocated=torch.cuda.max_memory_allocated(device) if on_cuda else None,
            reserved=torch.cuda.max_memory_reserved(device) if on_cuda else None,
        )

    def memory(self, number: int) -> TrialMemory | None:
        """What is known of the memory of the trial in training; None where there was no room to measure it."""
        assert self._trial is not None
        assert self._trial.number == number
        return self._memory.get(_memory_shape(self._trial)[0])

    def _memory_figures(self, trial: ReferenceTrial) -> dict[str, float]:
        """Figures of what the trial needs, as far as they are known."""
        memory = self._memory.get(_memory_shape(trial)[0])
        return {} if memory is None else memory.metrics

    def _save_adapter(self, trial: ReferenceTrial, folder: Path) -> None:
        config, base = trial.config, self._base
        peft_config, tensors = for_plain_base(base, config.lora, adapter_tensors(trial.model), trial.initial)
        write_adapter(folder, peft_config, config.model, tensors, base.location)

    def discard(self, number: int) -> None:
        """Give a trial up."""
        if self._trial is not None and self._trial.number == number:
            self._trial.close()
            self._trial = None
            shutil.rmtree(self.trial_folder(number) / "trainer", ignore_errors=True)

    def save_checkpoints(self) -> None:
        """Write the active trial's state to its folder."""
        if self._trial is not None:
            folder = self.trial_folder(self._trial.number) / "checkpoint"
            identity = checkpoint_identity(self._trial.config, self._trial.data)
            write_checkpoint(folder, identity, self._trial.state(), self._trial.progress)

    def step(self) -> list[TrialEvent]:
        """Train the active trial by one optimizer step, and evaluate it at an evaluation point.

        Returns:
            What happened; a trial that ended has left the engine.
        """
        trial = self._trial
        if trial is None:
            return []
        events: list[TrialEvent] = []
        try:
            events.extend(self._step(trial))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            free_cached_memory()
            events.append(
                OutOfMemory(
                    **_at(trial, trial.progress.step),
                    reason=does_not_fit(None, None, " ".join(str(error).split())[:200]),
                )
            )
        if any(isinstance(event, (Finished, Diverged, Failed, OutOfMemory)) for event in events):
            self.discard(trial.number)
        return events

    def _step(self, trial: ReferenceTrial) -> Iterator[TrialEvent]:
        """One event at a time, so that what has happened is told also if memory runs out thereafter."""
        if not trial.finished and trial.due_evaluation is None:
            ended = yield from self._train(trial)
            if ended:
                return
        if trial.due_evaluation is not None:
            yield from self._assessor.evaluate([trial])
        yield from self._assessor.branch_off(trial)

    def _train(self, trial: ReferenceTrial) -> Generator[TrialEvent, None, bool]:
        """Make an optimizer step; whether it was the trial's last because of an error."""
        tokens, seconds, step = trial.progress.train_tokens, trial.progress.train_seconds, trial.progress.step + 1
        try:
            done = trial.step()
        except TrainingError as error:
            yield Failed(**_at(trial, step), reason=str(error))
            return True
        self.tokens_per_second = (trial.progress.train_tokens - tokens) / (trial.progress.train_seconds - seconds)
        if not (abs(done.loss) < float("inf") and done.grad_norm < float("inf")):
            reason = f"loss {done.loss}, gradient norm {done.grad_norm} at optimizer step {step}"
            yield Diverged(**_at(trial, step), reason=reason)
            return True
        if step % trial.config.training.logging_steps == 0 or trial.finished:
            yield Logged(**_at(trial, step), loss=done.loss, grad_norm=done.grad_norm, learning_rate=done.learning_rate)
        return False


def _at(trial: ReferenceTrial, step: int) -> dict[str, Any]:
    return {"number": trial.number, "step": step, "epoch": trial.plan.epoch(step)}


def _memory_shape(trial: ReferenceTrial) -> tuple[Hashable, list[int]]:
    """What decides a trial's memory, and the rows of its largest step."""
    training, train = trial.config.training, trial.data.train
    by_length = sorted(range(len(train)), key=lambda index: len(train.input_ids[index]))
    rows = by_length[-training.per_device_train_batch_size :]
    return (trial.memory_shape, len(rows), len(train.input_ids[rows[-1]])), rows
