"""The packed engine: one step trains every admitted trial by one micro-batch.

A trial's result is the one it would have alone: its loss denominator, clipping, optimizer, schedule, data
order and random numbers are its own (`slot`), and rows do not mix (`packed_linear`).
"""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import save as save_arrays

from lora_lab.study.errors import TrainingError
from lora_lab.study.events import Diverged, Evaluated, Failed, Finished, Logged, OutOfMemory, TrialEvent
from lora_lab.training.adapters import initial_weights, lora_config, save_adapter
from lora_lab.training.checkpoint import read_checkpoint, write_checkpoint
from lora_lab.training.durable import write_durably
from lora_lab.training.evaluation import ExampleLosses, evaluate
from lora_lab.training.memory import LiveBytes, free_cached_memory, is_out_of_memory, resident_tensors
from lora_lab.training.packed_model import IGNORED, PackedBatch, PackedModel, pad_rows
from lora_lab.training.schedule import BatchPlan
from lora_lab.training.slot import PendingStep, Slot

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator
    from pathlib import Path

    from torch import Tensor

    from lora_lab.study.settings import DataSettings, TrialConfig
    from lora_lab.training.base import Base
    from lora_lab.training.datasets import DataCatalog

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
        self._peaks: dict[Hashable, int] = {}
        self.tokens_per_second = 0.0
        """Trained tokens per second of the whole pack, in the newest step."""
        self.set_aside: list[int] = []
        """Trials that left the pack because it did not fit into memory; `admit` takes them up where they were."""
        self._base_losses: dict[DataSettings, tuple[float, float | None]] = {}

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in the pack, in the order of admission."""
        return tuple(self._slots)

    def trial_folder(self, number: int) -> Path:
        """Where a trial's files lie."""
        return self._folder / f"{number:04d}"

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and loss on the forgetting text of the bare base, measured once per data settings."""
        if config.data not in self._base_losses:
            splits = self._data.splits(config.data)
            rows = config.training.per_device_eval_batch_size
            [held_out] = evaluate(self._model, splits.eval, [None], rows)
            general = evaluate(self._model, splits.forgetting, [None], rows)[0] if splits.forgetting else None
            self._base_losses[config.data] = (held_out.mean, general.mean if general else None)
        return self._base_losses[config.data]

    def admit(self, number: int, config: TrialConfig) -> None:
        """Give a trial a slot; it goes on from its checkpoint where there is one.

        Raises:
            InputError: its adapter cannot be put on this base, or its data cannot be right.
            CheckpointError: its checkpoint is damaged.
        """
        slot = self._new_slot(number, config)
        if not self._measure_memory(slot):
            self.set_aside.append(number)
            return
        saved = read_checkpoint(self.trial_folder(number) / "checkpoint", _identity(slot), slot.parameter_count)
        if saved is not None:
            slot.restore(*saved)
        self._slots[number] = slot

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
        )

    def _measure_memory(self, slot: Slot) -> bool:
        """Count the trial's memory, alone at its largest step, once per distinct shape.

        Returns:
            False when there is no room for that beside the trials in the pack.
        """
        shape, rows = self._memory_shape(slot)
        if shape in self._peaks:
            return True
        copy = self._new_slot(slot.number, slot.config)
        train = slot.data.train
        copy.pending = PendingStep([np.array(rows)], sum(train.label_tokens(index) for index in rows))
        try:
            with LiveBytes((*resident_tensors(self._base.model), *copy.resident_tensors())) as live:
                list(self._train([copy]))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            free_cached_memory()
            return not self._slots  # alone in the pack it may try; its first step will tell
        self._peaks[shape] = live.peak
        return True

    def _memory_shape(self, slot: Slot) -> tuple[Hashable, list[int]]:
        """What decides a trial's memory, and the rows of its largest step."""
        training, train = slot.config.training, slot.data.train
        by_length = sorted(range(len(train)), key=lambda index: len(train.input_ids[index]))
        rows = by_length[-training.per_device_train_batch_size :]
        length = len(train.input_ids[rows[-1]])
        return (slot.memory_shape, len(rows), length, slot.config.lora.lora_dropout > 0), rows

    def discard(self, number: int) -> None:
        """Take a trial out of the pack; its neighbors do not notice."""
        self._slots.pop(number, None)

    def save_checkpoints(self) -> None:
        """Write every active trial's state to its folder."""
        for slot in self._slots.values():
            self._save_checkpoint(slot)

    def _save_checkpoint(self, slot: Slot) -> None:
        folder = self.trial_folder(slot.number) / "checkpoint"
        write_checkpoint(folder, _identity(slot), slot.state(), slot.progress)

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
                reason=f"does not fit even alone ({' '.join(reason.split())[:200]}); lower "
                "per_device_train_batch_size (with gradient_accumulation_steps) or data.max_length",
            )
        ]

    def _step(self) -> Iterator[TrialEvent]:
        """One event at a time, so that what has happened is told also if memory runs out thereafter."""
        training = [slot for slot in self._slots.values() if not slot.finished and slot.due_evaluation is None]
        if training:
            yield from self._train(training)
        due = [slot for slot in self._slots.values() if slot.due_evaluation is not None]
        if due:
            yield from self._evaluate(due)

    # Training

    def _train(self, slots: list[Slot]) -> Iterator[TrialEvent]:
        started = time.perf_counter()
        chosen = [slot.next_micro_batch() for slot in slots]
        batch = self._batch(slots, chosen)
        losses = self._add_gradients(slots, batch)
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
        ids = [slot.data.train.input_ids[i] for slot, rows in zip(slots, chosen, strict=True) for i in rows]
        labels = [slot.data.train.labels[i] for slot, rows in zip(slots, chosen, strict=True) for i in rows]
        longest = max(len(row) for row in ids)
        length = -(-longest // LENGTH_BUCKET) * LENGTH_BUCKET
        for slot, rows in zip(slots, chosen, strict=True):
            assert slot.pending is not None
            own = max(len(slot.data.train.input_ids[i]) for i in rows)
            slot.dropout.prepare(slot.progress.step, slot.pending.done, len(rows), own)
        return PackedBatch(
            pad_rows(ids, length, 0), pad_rows(labels, length, IGNORED), tuple(len(rows) for rows in chosen)
        )

    def _add_gradients(self, slots: list[Slot], batch: PackedBatch) -> Tensor:
        """Add this micro-batch's gradients to every slot's; returns [K] its part of each slot's loss.

        A slot's part is the sum over its labels by the number of labels in its whole optimizer step.
        """
        layout = self._model.layout(batch, slots)
        counts = [int(part.sum()) for part in torch.split(layout.row_counts, list(batch.rows))]
        with self._model.routed(layout):
            sums = [part.sum() for part in torch.split(self._model.nll(layout), counts)]
            parts = torch.stack(
                [total / slot.pending.label_tokens for slot, total in zip(slots, sums, strict=True) if slot.pending]
            )
            torch.autograd.backward(parts.sum())
        return parts.detach()

    def _book(self, slots: list[Slot], chosen: list[np.ndarray], losses: list[float], seconds: float) -> None:
        tokens = [
            sum(len(slot.data.train.input_ids[i]) for i in rows) for slot, rows in zip(slots, chosen, strict=True)
        ]
        self.tokens_per_second = sum(tokens) / seconds
        work = [self._flops(slot, own) for slot, own in zip(slots, tokens, strict=True)]
        for slot, loss, own, share in zip(slots, losses, tokens, work, strict=True):
            assert slot.pending is not None
            slot.pending.loss += loss
            slot.pending.tokens += own
            slot.pending.seconds += seconds * share / sum(work)

    def _flops(self, slot: Slot, tokens: int) -> int:
        """Of training on `tokens`: 2 + 2 per parameter of the frozen base, 2 + 4 per adapter parameter."""
        return tokens * (4 * self._base.linears.total_parameters + 6 * slot.parameter_count)

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

    # Evaluation and the end of a trial

    def _evaluate(self, due: list[Slot]) -> Iterator[TrialEvent]:
        groups: dict[tuple[DataSettings, int], list[Slot]] = {}
        for slot in due:
            key = (slot.config.data, slot.config.training.per_device_eval_batch_size)
            groups.setdefault(key, []).append(slot)
        for (_, rows), slots in groups.items():
            held_out = evaluate(self._model, slots[0].data.eval, slots, rows)
            for slot, losses in zip(slots, held_out, strict=True):
                yield from self._evaluated(slot, losses)

    def _evaluated(self, slot: Slot, losses: ExampleLosses) -> list[TrialEvent]:
        number = slot.due_evaluation
        assert number is not None
        where = {"number": slot.number, "step": slot.progress.step}
        epoch = slot.plan.epoch(slot.progress.step)
        if not losses.mean < float("inf"):
            return [Diverged(**where, epoch=epoch, reason=f"eval_loss is {losses.mean}")]
        self._save_losses(slot, f"eval-{number:04d}", losses)
        forgetting = None
        if slot.finished and slot.data.forgetting is not None:
            rows = slot.config.training.per_device_eval_batch_size
            [general] = evaluate(self._model, slot.data.forgetting, [slot], rows)
            self._save_losses(slot, "forgetting", general)
            forgetting = general.mean
        evaluated = Evaluated(
            **where, epoch=epoch, evaluation=number, eval_loss=losses.mean, forgetting_loss=forgetting
        )
        events: list[TrialEvent] = [evaluated, self._finish(slot, evaluated)] if slot.finished else [evaluated]
        slot.progress.last_evaluation = number  # at the end: until here, memory may run out, and it comes again
        return events

    def _save_losses(self, slot: Slot, name: str, losses: ExampleLosses) -> None:
        folder = self.trial_folder(slot.number) / "evaluations"
        payload = save_arrays({"nll": losses.nll, "label_tokens": losses.label_tokens})
        write_durably(folder / f"{name}.safetensors", payload)

    def _finish(self, slot: Slot, evaluated: Evaluated) -> Finished:
        config, base = slot.config, self._base
        folder = self.trial_folder(slot.number) / "adapter"
        peft_config = lora_config(config.lora, base.linears, fan_in_fan_out=base.fan_in_fan_out)
        save_adapter(folder, peft_config, config.model, slot.weights(), base.location)
        return Finished(
            number=slot.number,
            step=slot.progress.step,
            epoch=evaluated.epoch,
            metrics=self._final_metrics(slot, evaluated),
            adapter_folder=folder,
        )

    def _final_metrics(self, slot: Slot, evaluated: Evaluated) -> dict[str, float]:
        progress, count, total = slot.progress, slot.parameter_count, self._base.linears.total_parameters
        size = slot.parameters.element_size()
        metrics = {
            "eval_loss": evaluated.eval_loss,
            "trainable_params": float(count),
            "trainable_percent": 100.0 * count / (total + count),
            "adapter_bytes": float(count * size),
            "optimizer_bytes": float(2 * count * size),
            "train_seconds": progress.train_seconds,
            "train_tokens": float(progress.train_tokens),
            "tokens_per_second": progress.train_tokens / progress.train_seconds if progress.train_seconds else 0.0,
            "total_flos": float(self._flops(slot, progress.train_tokens)),
            "steps": float(progress.step),
            "epochs": evaluated.epoch,
        }
        peak = self._peaks.get(self._memory_shape(slot)[0])
        if peak is not None:
            metrics["peak_memory_bytes"] = float(peak)
        _, before = self.base_losses(slot.config)
        if evaluated.forgetting_loss is not None and before is not None:
            metrics["forgetting"] = evaluated.forgetting_loss - before
        return metrics


def _identity(slot: Slot) -> str:
    """What a checkpoint belongs to: the configuration and the very examples."""
    text = slot.config.model_dump_json() + slot.data.train.fingerprint + slot.data.eval.fingerprint
    return hashlib.sha256(text.encode()).hexdigest()
