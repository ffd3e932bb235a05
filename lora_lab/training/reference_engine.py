"""The reference engine: `transformers.Trainer` and `peft`, one trial at a time.

It trains what the packed engine does not do exactly (`lora_lab.study.engines` says what), with the same
configuration in and the same events out: same order of examples, loss denominator, schedule, dropout masks and
evaluations. For a trial that both can train, both give the same numbers.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lora_lab.common.activity import Activity, unwatched
from lora_lab.study.events import OutOfMemory, TrialEvent
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.assessment import Assessor
from lora_lab.training.base.adapters import write_adapter
from lora_lab.training.batch import Padding
from lora_lab.training.class_scoring import ClassScorer
from lora_lab.training.device import shortage_of_memory
from lora_lab.training.memory.trial_memory import KnownMemory, TrialMemory, does_not_fit
from lora_lab.training.reference.generation import generated
from lora_lab.training.reference.losses import class_logits, label_hits, label_losses
from lora_lab.training.reference.model import adapter_tensors, for_plain_base, set_mode, sharing_copy
from lora_lab.training.reference.trial import ReferenceTrial
from lora_lab.training.scoring import AnswerScorer
from lora_lab.training.trial_checkpoints import TrialCheckpoints
from lora_lab.training.trial_events import at, events_until_memory_runs_out, step_events

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from lora_lab.common.activity import Beat
    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.batch import PackedBatch, TokenLosses
    from lora_lab.training.datasets import DataCatalog
    from lora_lab.training.generation import Answers, Greedy
    from lora_lab.training.scoring import Scorer
    from lora_lab.training.trial import StepFigures


class ReferenceEngine:
    """Trains one trial at a time (an `Engine`).

    Args:
        base: The frozen base. To share it with a packed engine, make this engine first: it keeps the modules as
            they are now, while the tensors in them stay shared.
        data: Where the trials' token sets come from.
        trials_folder: Each trial keeps its checkpoint, evaluations and adapter in a folder of its own here.
        beat: Called before each batch of an evaluation or of prompts, and each operation of a memory probe.
    """

    def __init__(self, base: Base, data: DataCatalog, trials_folder: Path, beat: Beat = unwatched) -> None:
        self._base = replace(base, model=sharing_copy(base.model))
        self._data = data
        self._folder = trials_folder
        self._trial: ReferenceTrial | None = None
        self._memory, self._beat = KnownMemory(), beat
        self._checkpoints = TrialCheckpoints(trials_folder)
        self.tokens_per_second = 0.0
        """Trained tokens per second, in the newest step."""
        self._assessor = Assessor(
            data,
            trials_folder,
            tokenizer=base.tokenizer,
            base_parameters=base.linears.total_parameters,
            memory=self._memory,
            padding=Padding.of(base.device.type, base.linears.limits),
            token_losses=self._token_losses,
            token_hits=self._token_hits,
            scorer=self._scorer(),
            save_adapter=self.save_adapter,
            beat=beat,
        )

    @property
    def active(self) -> tuple[int, ...]:
        """The number of the trial in training, if there is one."""
        return (self._trial.number,) if self._trial is not None else ()

    def trial(self, number: int) -> ReferenceTrial:
        """The trial in training; KeyError where another one is, or none."""
        if self._trial is None or self._trial.number != number:
            raise KeyError(number)
        return self._trial

    def trial_folder(self, number: int) -> Path:
        """Where a trial's files lie."""
        return TrialFolder.of(self._folder, number).path

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and loss on the forgetting text of the bare base, measured once per data settings."""
        return self._assessor.base_losses(config)

    def base_scores(self, config: TrialConfig) -> dict[str, float]:
        """What `config.evaluation` asks for, of the bare base."""
        return self._assessor.base_scores(config)

    def admit(self, number: int, config: TrialConfig, shorter: Sequence[TrialConfig] = ()) -> OutOfMemory | None:
        """Take up a trial, when none is in training, at its checkpoint if it has one.

        Args:
            number: The trial.
            config: What it trains.
            shorter: Configurations with fewer epochs whose results are wanted too, as in `Engine.admit`.

        Returns:
            How it ended, where the device has no room for it.

        Raises:
            InputError: PEFT cannot do this to this base, or the data cannot be right.
            CheckpointError: its checkpoint is damaged.
        """
        assert self._trial is None, "the reference engine trains one trial at a time"
        take_up = partial(self._take_up, number, config, shorter)
        if shortage_of_memory(take_up) is None:
            return None
        reason = shortage_of_memory(partial(take_up, measured=False))  # unmeasured it may try; its steps will tell
        if reason is None:
            return None
        return OutOfMemory(number=number, step=0, epoch=0.0, reason=does_not_fit(None, None, reason))

    def _take_up(
        self, number: int, config: TrialConfig, shorter: Sequence[TrialConfig], *, measured: bool = True
    ) -> None:
        """Make a trial the one in training, or raise and leave no trace of it."""
        data = self._data.splits(config.data)
        trial = ReferenceTrial(number, config, self._base, data=data, folder=self._trainer_folder(number))
        if measured:
            self._memory.measure(trial, partial(self._count_step, trial))
        self._checkpoints.take_up(trial, shorter)
        self._trial = trial

    def _count_step(self, trial: ReferenceTrial, rows: np.ndarray) -> TrialMemory:
        """The memory of a step of the trial on these rows."""
        device, between = (
            self._base.device,
            partial(self._beat, Activity(f"measuring the memory of trial {trial.number}")),
        )
        if device.type != "cuda":
            return TrialMemory(predicted=None, measured=trial.count_step(rows, between))
        torch.cuda.reset_peak_memory_stats(device)
        return TrialMemory(
            predicted=None,
            measured=trial.count_step(rows, between),
            allocated=torch.cuda.max_memory_allocated(device),
            requested=torch.cuda.memory_stats(device)["requested_bytes.all.peak"],
        )

    def memory(self, number: int) -> TrialMemory | None:
        """What the trial in training needs; None where there was no room to measure it."""
        return self._memory.of(self.trial(number))

    def save_adapter(self, number: int, folder: Path) -> None:
        """Write the adapter of the trial in training, as it is now, into a folder."""
        trial, base = self.trial(number), self._base
        peft_config, tensors = for_plain_base(base, trial.config.lora, adapter_tensors(trial.model), trial.initial)
        write_adapter(folder, peft_config, trial.config.model, tensors, base.location)

    def discard(self, number: int) -> None:
        """Give a trial up."""
        if number in self.active:
            self.trial(number).close()
            self._trial = None
            shutil.rmtree(self._trainer_folder(number), ignore_errors=True)

    def save_checkpoints(self) -> None:
        """Write the active trial's state to its folder."""
        if self._trial is not None:
            self._checkpoints.save(self._trial)

    def step(self) -> list[TrialEvent]:
        """Train the active trial by one optimizer step, and evaluate it at an evaluation point.

        Returns:
            What happened; a trial that ended has left the engine.
        """
        trial = self._trial
        if trial is None:
            return []
        events, ran_out = events_until_memory_runs_out(self._step(trial), self.discard)
        if ran_out is not None:
            events.append(OutOfMemory(**at(trial), reason=does_not_fit(None, None, ran_out)))
            self.discard(trial.number)
        return events

    def _step(self, trial: ReferenceTrial) -> Iterator[TrialEvent]:
        """One event at a time, so that what has happened is told also if memory runs out thereafter."""
        if not trial.progress.finished and trial.progress.due_evaluation is None:
            yield from step_events(trial, partial(self._train, trial))
        if self._trial is trial and trial.progress.due_evaluation is not None:
            yield from self._assessor.evaluate([trial])
        if self._trial is trial:
            yield from self._checkpoints.branch_off(trial)

    def _train(self, trial: ReferenceTrial) -> StepFigures:
        done = trial.progress.counters
        tokens, seconds = done.train_tokens, done.train_seconds
        figures = trial.step()
        self.tokens_per_second = (done.train_tokens - tokens) / (done.train_seconds - seconds)
        return figures

    def _token_losses(self, batch: PackedBatch, numbers: Sequence[int | None]) -> TokenLosses:
        return label_losses(self._base, self._evaluated(numbers), batch)

    def _token_hits(self, batch: PackedBatch, numbers: Sequence[int | None]) -> TokenLosses:
        return label_hits(self._base, self._evaluated(numbers), batch)

    def _scorer(self) -> Scorer:
        if self._base.linears.task_type == "SEQ_CLS":
            return ClassScorer(self._base.tokenizer, self._probabilities, self._beat)
        return AnswerScorer(self._base, self._answers)

    def _probabilities(self, batch: PackedBatch, number: int | None) -> np.ndarray:
        logits = class_logits(self._base, self._evaluated([number]), batch)
        told: np.ndarray = logits.double().softmax(dim=-1).cpu().numpy()
        return told

    def _answers(
        self, numbers: Sequence[int | None], prompts: Sequence[np.ndarray], greedy: Greedy, rows: int
    ) -> Answers:
        return [generated(self._base, self._evaluated(numbers), prompts, greedy, rows=rows, beat=self._beat)]

    def _evaluated(self, numbers: Sequence[int | None]) -> Any:
        """The model of the one trial that is evaluated, or the bare base, in evaluation mode."""
        [number] = numbers
        if number is None:
            return self._base.model
        model = self.trial(number).model
        set_mode(model, training=False)
        return model

    def _trainer_folder(self, number: int) -> Path:
        """Room for the own files of `Trainer`."""
        return self.trial_folder(number) / "trainer"
