"""The packed engine: one step trains every admitted trial by one micro-batch.

A trial's result is the one it would have alone: its loss denominator, clipping, optimizer, schedule, data
order and random numbers are its own (`slot`), and rows do not mix (`packed_linear`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from lora_lab.common.errors import TrainingError
from lora_lab.study.events import Diverged, Failed, Finished, Logged, OutOfMemory, TrialEvent
from lora_lab.training.assessment import Assessor
from lora_lab.training.base.adapters import initial_weights, lora_config, save_adapter
from lora_lab.training.batch import largest_rows, padded
from lora_lab.training.checkpoint import checkpoint_identity, read_checkpoint, write_checkpoint
from lora_lab.training.device import device_bytes, free_cached_memory, is_out_of_memory
from lora_lab.training.memory.probe import MemoryProbe, TrialMemory, does_not_fit
from lora_lab.training.milestones import planned_milestones
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.packed.slot import PendingStep, Slot
from lora_lab.training.packed.step import add_gradients
from lora_lab.training.schedule import BatchPlan

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.batch import PackedBatch
    from lora_lab.training.datasets import DataCatalog
    from lora_lab.training.memory.predictor import MemoryPrediction

LENGTH_BUCKET = 8
"""Padded lengths are multiples of this, so that there are few distinct shapes."""


class PackedEngine:
    """Trains trials side by side on one base.

    Args:
        base: The frozen base; adapters are hooked behind its linear modules.
        data: Where the trials' token sets come from.
        trials_folder: Each trial keeps its checkpoint, evaluations and adapter in a folder of its own here.
    """

    def __init__(self, base: Base, data: DataCatalog, trials_folder: Path) -> None:
        self._base = base
        self._data = data
        self._folder = trials_folder
        self._model = PackedModel(base)
        self._slots: dict[int, Slot] = {}
        self._probe = MemoryProbe(base, self._model)
        self._memory: dict[Hashable, TrialMemory] = {}
        self.tokens_per_second = 0.0
        """Trained tokens per second of the whole pack, in the newest step."""
        self.set_aside: list[int] = []
        """Trials that left the pack because it did not fit into memory; `admit` takes them up where they were."""
        self._assessor = Assessor[Slot](
            base, self._model, data, trials_folder, memory=self._memory_figures, save_adapter=self._save_adapter
        )

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in the pack, in the order of admission."""
        return tuple(self._slots)

    def trial_folder(self, number: int) -> Path:
        """Where a trial's files lie."""
        return self._folder / f"{number:04d}"

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and loss on the forgetting text of the bare base, measured once per data settings."""
        return self._assessor.base_losses(config)

    def admit(self, number: int, config: TrialConfig, shorter: Sequence[TrialConfig] = ()) -> None:
        """Give a trial a slot; it goes on from its checkpoint where there is one.

        Args:
            number: The trial.
            config: What it trains.
            shorter: Configurations with fewer epochs, and otherwise the same, whose results are wanted too: each
                gives a `Milestone` where that run ends, or begins to differ from this one.

        Raises:
            InputError: its adapter cannot be put on this base, or its data cannot be right.
            CheckpointError: its checkpoint is damaged.
        """
        if config.data.packing:
            self._model.require_separate_examples()
        if config.training.gradient_checkpointing:
            self._model.require_recomputation()
        slot = self._new_slot(number, config)
        if not self._measure_memory(slot):
            self.set_aside.append(number)
            return
        identity = checkpoint_identity(config, slot.data)
        saved = read_checkpoint(self.trial_folder(number) / "checkpoint", identity, slot.state_sizes)
        if saved is not None:
            slot.restore(*saved)
        self._slots[number] = slot
        ahead = planned_milestones(len(slot.data.train), shorter)
        slot.milestones = [milestone for milestone in ahead if milestone.step >= slot.progress.step]

    def _new_slot(self, number: int, config: TrialConfig) -> Slot:
        data, base = self._data.splits(config.data), self._base
        return Slot(
            number,
            config,
            weights=initial_weights(config.lora, base.linears, config.training.seed, base.adapter_dtype),
            plan=BatchPlan(len(data.train), config.training),
            data=data,
            device=base.device,
            compute_dtype=base.compute_dtype,
            module_devices=base.module_devices,
        )

    def _measure_memory(self, slot: Slot) -> bool:
        """Count the trial's memory, alone at its largest step, once per distinct shape.

        Returns:
            False when there is no room for that beside the trials in the pack.
        """
        shape, rows = self._memory_shape(slot)
        if shape in self._memory:
            return True
        copy, train = self._new_slot(slot.number, slot.config), slot.data.train
        copy.pending = PendingStep([rows], sum(train.label_tokens(int(index)) for index in rows))
        batch = self._batch([copy], [rows])
        try:
            self._memory[shape] = self._probe.measure(copy, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            free_cached_memory()
            return not self._slots  # alone in the pack it may try; its first step will tell
        return True

    def _memory_shape(self, slot: Slot) -> tuple[Hashable, np.ndarray]:
        """What decides a trial's memory, and the rows of its largest step."""
        train = slot.data.train
        rows = largest_rows(train, slot.config.training.per_device_train_batch_size)
        length = len(train.input_ids[rows[-1]])
        return (slot.memory_shape, len(rows), length, slot.config.lora.lora_dropout > 0), rows

    def predict(self, config: TrialConfig) -> MemoryPrediction | None:
        """What a trial would need, alone at its largest step; None where that cannot be known without trying."""
        train = self._data.splits(config.data).train
        rows = largest_rows(train, config.training.per_device_train_batch_size)
        return self._probe.predict(config, padded([train], [rows], LENGTH_BUCKET))

    @property
    def available_bytes(self) -> int | None:
        """What the device has for the base and the trials; None for a CPU, whose memory is not ours alone."""
        memory = device_bytes(self._base.device)
        return None if memory is None else memory[0] + torch.cuda.memory_reserved(self._base.device)

    def memory(self, number: int) -> TrialMemory | None:
        """What is known of the memory of a trial in the pack; None where there was no room to measure it."""
        return self._memory.get(self._memory_shape(self._slots[number])[0])

    def _memory_figures(self, slot: Slot) -> dict[str, float]:
        """Figures of what the trial needs alone, as far as they are known."""
        memory = self._memory.get(self._memory_shape(slot)[0])
        return {} if memory is None else memory.metrics

    def _save_adapter(self, slot: Slot, folder: Path) -> None:
        base, model = self._base, slot.config.model
        peft_config = lora_config(slot.config.lora, base.linears, fan_in_fan_out=base.fan_in_fan_out)
        save_adapter(folder, peft_config, model, slot.weights(), base.location)

    def discard(self, number: int) -> None:
        """Take a trial out of the pack; its neighbors do not notice."""
        self._slots.pop(number, None)

    def save_checkpoints(self) -> None:
        """Write every active trial's state to its folder."""
        for slot in self._slots.values():
            self._save_checkpoint(slot)

    def _save_checkpoint(self, slot: Slot) -> None:
        folder = self.trial_folder(slot.number) / "checkpoint"
        write_checkpoint(folder, checkpoint_identity(slot.config, slot.data), slot.state(), slot.progress)

    def step(self) -> list[TrialEvent]:
        """Train every active trial by one micro-batch, and evaluate those at an evaluation point.

        Returns:
            What happened, in the order of admission; a trial that ended has left the pack.
        """
        events: list[TrialEvent] = []
        try:
            for event in self._step():
                events.append(event)
                if isinstance(event, (Finished, Diverged, Failed)):
                    self.discard(event.number)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            events += self._make_room(str(error))
        return events

    def _make_room(self, reason: str) -> list[TrialEvent]:
        """Set the newest trial aside and let the others start the step again; alone, it does not fit at all."""
        for slot in self._slots.values():
            slot.abandon_step()
        newest = next(reversed(self._slots.values()))
        self.discard(newest.number)
        free_cached_memory()
        if self._slots:
            self._save_checkpoint(newest)
            self.set_aside.append(newest.number)
            return []
        step = newest.progress.step
        return [
            OutOfMemory(
                number=newest.number,
                step=step,
                epoch=newest.plan.epoch(step),
                reason=does_not_fit(self.predict(newest.config), self.available_bytes, " ".join(reason.split())[:200]),
            )
        ]

    def _step(self) -> Iterator[TrialEvent]:
        """One event at a time, so that what has happened is told also if memory runs out thereafter."""
        training = [slot for slot in self._slots.values() if not slot.finished and slot.due_evaluation is None]
        if training:
            yield from self._train(training)
        due = [slot for slot in self._slots.values() if slot.due_evaluation is not None]
        if due:
            yield from self._assessor.evaluate(due)
        for slot in self._slots.values():
            yield from self._assessor.branch_off(slot)

    # Training

    def _train(self, slots: list[Slot]) -> Iterator[TrialEvent]:
        started = time.perf_counter()
        chosen = [slot.next_micro_batch() for slot in slots]
        batch = self._batch(slots, chosen)
        losses = add_gradients(self._model, slots, self._model.layout(batch, slots))
        due: list[Slot] = []
        for slot in slots:
            assert slot.pending is not None
            slot.pending.done += 1
            if slot.pending.complete:
                due.append(slot)
        figures = torch.stack([*losses.unbind(), *(slot.clip() for slot in due)]).tolist()
        self._book(slots, chosen, figures[: len(slots)], time.perf_counter() - started)
        return self._update(due, figures[len(slots) :])

    def _batch(self, slots: list[Slot], chosen: list[np.ndarray]) -> PackedBatch:
        for slot, rows in zip(slots, chosen, strict=True):
            assert slot.pending is not None
            own = max(len(slot.data.train.input_ids[i]) for i in rows)
            slot.dropout.prepare(slot.progress.step, slot.pending.done, len(rows), own)
        return padded([slot.data.train for slot in slots], chosen, LENGTH_BUCKET)

    def _book(self, slots: list[Slot], chosen: list[np.ndarray], losses: list[float], seconds: float) -> None:
        tokens = [
            sum(len(slot.data.train.input_ids[i]) for i in rows) for slot, rows in zip(slots, chosen, strict=True)
        ]
        self.tokens_per_second = sum(tokens) / seconds
        work = [slot.flops(own, self._base.linears.total_parameters) for slot, own in zip(slots, tokens, strict=True)]
        for slot, loss, own, share in zip(slots, losses, tokens, work, strict=True):
            assert slot.pending is not None
            slot.pending.loss += loss
            slot.pending.tokens += own
            slot.pending.seconds += seconds * share / sum(work)

    def _update(self, due: list[Slot], norms: list[float]) -> Iterator[TrialEvent]:
        for slot, norm in zip(due, norms, strict=True):
            assert slot.pending is not None
            where = {"number": slot.number, "step": slot.progress.step + 1}
            epoch = slot.plan.epoch(slot.progress.step + 1)
            if not (abs(slot.pending.loss) < float("inf") and norm < float("inf")):
                reason = f"loss {slot.pending.loss}, gradient norm {norm} at optimizer step {where['step']}"
                yield Diverged(**where, epoch=epoch, reason=reason)
                continue
            rate = slot.learning_rate
            try:
                done = slot.update()
            except TrainingError as error:
                yield Failed(**where, epoch=epoch, reason=str(error))
                continue
            if slot.progress.step % slot.config.training.logging_steps == 0 or slot.finished:
                yield Logged(**where, epoch=epoch, loss=done.loss, grad_norm=norm, learning_rate=rate)
