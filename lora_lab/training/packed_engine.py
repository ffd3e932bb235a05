"""The packed engine: one step trains every admitted trial by one micro-batch.

A trial's result is the one it would have alone: its loss denominator, clipping, optimizer, schedule, data
order and random numbers are its own (`packed.slot`), and rows do not mix (`packed.linear`).
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import torch

from lora_lab.common.activity import unwatched
from lora_lab.study.engines import engine_for
from lora_lab.study.events import OutOfMemory, TrialEvent
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.assessment import Assessor
from lora_lab.training.base.adapters import initial_weights, lora_config, save_adapter
from lora_lab.training.batch import Padding, largest_rows, padded
from lora_lab.training.device import device_bytes, shortage_of_memory
from lora_lab.training.memory.probe import MemoryProbe
from lora_lab.training.memory.trial_memory import KnownMemory, TrialMemory, does_not_fit
from lora_lab.training.packed.captured_step import CapturedSteps, again, cuda_graph
from lora_lab.training.packed.generation import Decoder
from lora_lab.training.packed.linear import UnpackableError
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.packed.slot import Slot
from lora_lab.training.progress import training_flops
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
    from lora_lab.training.memory.predictor import MemoryPrediction


class PackedEngine:
    """Trains trials side by side on one base (an `Engine`).

    Args:
        base: The frozen base; adapters are hooked behind its linear modules.
        data: Where the trials' token sets come from.
        trials_folder: Each trial keeps its checkpoint, evaluations and adapter in a folder of its own here.
        beat: Called before each batch of an evaluation or of prompts, and each operation of a memory probe.
    """

    def __init__(self, base: Base, data: DataCatalog, trials_folder: Path, beat: Beat = unwatched) -> None:
        self._base = base
        self._data = data
        self._folder = trials_folder
        self._padding = Padding.of(base.device.type, base.linears.limits)
        self._model = PackedModel(base)
        self._decoder = Decoder(self._model, base.device, base.compute_dtype, beat)
        self._steps = CapturedSteps(self._model, cuda_graph if base.device.type == "cuda" else again)
        self._slots: dict[int, Slot] = {}
        self._probe = MemoryProbe(base, self._model, beat)
        self._memory = KnownMemory()
        self._checkpoints = TrialCheckpoints(trials_folder)
        self.tokens_per_second = 0.0
        """Trained tokens per second of the whole pack, in the newest step."""
        self.set_aside: list[int] = []
        """Trials that left the pack because it did not fit into memory; `admit` takes them up where they were."""
        self._assessor = Assessor(
            data,
            trials_folder,
            tokenizer=base.tokenizer,
            base_parameters=base.linears.total_parameters,
            memory=self._memory,
            padding=self._padding,
            token_losses=self._token_losses,
            token_hits=self._token_hits,
            scorer=AnswerScorer(base, self._answers),
            save_adapter=self.save_adapter,
            beat=beat,
        )

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in the pack, in the order of admission."""
        return tuple(self._slots)

    def trial(self, number: int) -> Slot:
        """The slot of a trial in the pack; KeyError where it is not there."""
        return self._slots[number]

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
        """Give a trial a slot, at its checkpoint if it has one; without room beside the others, it is `set_aside`.

        Args:
            number: The trial.
            config: What it trains.
            shorter: Configurations with fewer epochs, and otherwise the same, whose results are wanted too: each
                gives a `Milestone` where that run ends, or begins to differ from this one.

        Returns:
            How it ended, where there is no room for it even alone.

        Raises:
            InputError: its adapter cannot be put on this base, or its data cannot be right.
            CheckpointError: its checkpoint is damaged.
            UnpackableError: it cannot be trained exactly beside others, here or on any device (`engine_for`), or a
                row of its data would change how the rows of others are read.
        """
        choice = engine_for(config, is_cuda=self._base.device.type == "cuda")
        if choice.name != "packed":
            raise UnpackableError(choice.reason)
        self._require_rows_read_alike(config)
        take_up = partial(self._take_up, number, config, shorter)
        if shortage_of_memory(take_up) is None:
            return None
        if self._slots:
            self.set_aside.append(number)
            return None
        # Alone it may try without being measured: its steps will tell.
        reason = shortage_of_memory(partial(take_up, measured=False))
        if reason is None:
            return None
        reason = does_not_fit(self.predict(config), self.available_bytes, reason)
        return OutOfMemory(number=number, step=0, epoch=0.0, reason=reason)

    def _take_up(
        self, number: int, config: TrialConfig, shorter: Sequence[TrialConfig], *, measured: bool = True
    ) -> None:
        """Put a trial into the pack, or raise and leave no trace of it."""
        if config.data.packing:
            self._model.require_separate_examples()
        if config.training.gradient_checkpointing:
            self._model.require_recomputation()
        slot = self._new_slot(number, config)
        if measured:
            self._memory.measure(slot, partial(self._count_step, slot))
        self._checkpoints.take_up(slot, shorter)
        self._slots[number] = slot

    def _require_rows_read_alike(self, config: TrialConfig) -> None:
        limit = self._base.linears.limits.alike_up_to
        if limit is None:
            return
        splits = self._data.splits(config.data)
        longest = max(len(row) for tokens in splits.sets for row in tokens.input_ids)
        if longest > limit:  # shorter ones are not padded beyond it (`Padding`)
            raise UnpackableError(
                f"a row of {longest} tokens is beyond the {limit} up to which this base reads "
                "each row by itself (longrope): it would change what trials beside it are trained on"
            )

    def _new_slot(self, number: int, config: TrialConfig) -> Slot:
        base = self._base
        return Slot(
            number,
            config,
            weights=initial_weights(config.lora, base.linears, config.training.seed, base.adapter_dtype),
            data=self._data.splits(config.data),
            device=base.device,
            compute_dtype=base.compute_dtype,
            module_devices=base.module_devices,
        )

    def _count_step(self, slot: Slot, rows: np.ndarray) -> TrialMemory:
        """The memory of a step of a new slot on these rows, alone; the slot is as new afterwards."""
        state, counters = slot.state(), slot.progress.counters
        slot.begin([rows])
        try:
            return self._probe.measure(slot, self._batch([slot], [rows]))
        finally:
            slot.restore(state, counters)

    def predict(self, config: TrialConfig) -> MemoryPrediction | None:
        """What a trial would need, alone at its largest step; None where that cannot be known without trying."""
        train = self._data.splits(config.data).train
        rows = largest_rows(train, config.training.per_device_train_batch_size)
        return self._probe.predict(config, padded([train], [rows], self._padding.training))

    @property
    def available_bytes(self) -> int | None:
        """What the device has for the base and the trials; None for a CPU, whose memory is not ours alone."""
        memory = device_bytes(self._base.device)
        return None if memory is None else memory[0] + torch.cuda.memory_reserved(self._base.device)

    def memory(self, number: int) -> TrialMemory | None:
        """What a trial in the pack needs alone; None where there was no room to measure it."""
        return self._memory.of(self._slots[number])

    @property
    def measured_memory(self) -> tuple[TrialMemory, ...]:
        """What was measured of trials so far: one figure for all of one shape, in the order of their admission."""
        return self._memory.all

    def save_adapter(self, number: int, folder: Path) -> None:
        """Write the adapter of a trial in the pack, as it is now, into a folder."""
        slot, base = self._slots[number], self._base
        peft_config = lora_config(slot.config.lora, base.linears, fan_in_fan_out=base.fan_in_fan_out)
        save_adapter(folder, peft_config, slot.config.model, slot.weights(), base.location)

    def discard(self, number: int) -> None:
        """Take a trial out of the pack; its neighbors do not notice."""
        slot = self._slots.pop(number, None)
        if slot is not None:
            self._model.blocks.leave(slot)
        if not self._slots:
            self._steps.forget()

    def save_checkpoints(self) -> None:
        """Write every active trial's state to its folder; without memory for that, the older ones stay."""
        for slot in self._slots.values():
            self._checkpoints.save(slot)

    def step(self) -> list[TrialEvent]:
        """Train every active trial by one micro-batch, and evaluate those at an evaluation point.

        Returns:
            What happened, in the order of admission; a trial that ended has left the pack.
        """
        events, ran_out = events_until_memory_runs_out(self._step(), self.discard)
        return events if ran_out is None else events + self._make_room(ran_out)

    def _make_room(self, reason: str) -> list[TrialEvent]:
        """Set the newest trial aside and let the others start the step again; alone, it does not fit at all."""
        for slot in self._slots.values():
            slot.abandon_step()
        if self._steps.make_room():  # the memory of captured steps may be all that is missing
            return []
        newest = next(reversed(self._slots.values()))
        self.discard(newest.number)
        if self._slots:
            self._checkpoints.save(newest)
            self.set_aside.append(newest.number)
            return []
        reason = does_not_fit(self.predict(newest.config), self.available_bytes, reason)
        return [OutOfMemory(**at(newest), reason=reason)]

    def _step(self) -> Iterator[TrialEvent]:
        """One event at a time, so that what has happened is told also if memory runs out thereafter."""
        slots, arranged = self._slots.values(), self._model.blocks.arrange(self._slots.values())
        training = [slot for slot in arranged if not slot.progress.finished and slot.progress.due_evaluation is None]
        if training:
            yield from self._train(training)
        due = [slot for slot in slots if slot.progress.due_evaluation is not None]
        if due:
            yield from self._assessor.evaluate(due)
        for slot in slots:
            yield from self._checkpoints.branch_off(slot)

    def _token_losses(self, batch: PackedBatch, numbers: Sequence[int | None]) -> TokenLosses:
        return self._model.token_losses(batch, [None if one is None else self._slots[one] for one in numbers])

    def _token_hits(self, batch: PackedBatch, numbers: Sequence[int | None]) -> TokenLosses:
        return self._model.token_hits(batch, [None if one is None else self._slots[one] for one in numbers])

    def _answers(
        self, numbers: Sequence[int | None], prompts: Sequence[np.ndarray], greedy: Greedy, rows: int
    ) -> Answers:
        slots = [None if one is None else self._slots[one] for one in numbers]
        return self._decoder.answers(slots, prompts, greedy, rows)

    # Training

    def _train(self, slots: list[Slot]) -> Iterator[TrialEvent]:
        """Train slots, in the order in which they stand in the batch."""
        started = time.perf_counter()
        chosen = [slot.next_micro_batch() for slot in slots]
        batch = self._batch(slots, chosen)
        losses = self._steps.add_gradients(slots, batch)
        due: list[Slot] = []
        for slot in slots:
            assert slot.pending is not None
            slot.pending.done += 1
            if slot.pending.complete:
                due.append(slot)
        figures = torch.stack([*losses.unbind(), *(slot.clip() for slot in due)]).tolist()
        self._book(slots, chosen, figures[: len(slots)], time.perf_counter() - started)
        norms = dict(zip(due, figures[len(slots) :], strict=True))
        for slot in [slot for slot in self._slots.values() if slot in norms]:
            yield from step_events(slot, partial(slot.update, norms[slot]))

    def _batch(self, slots: list[Slot], chosen: list[np.ndarray]) -> PackedBatch:
        for slot, rows in zip(slots, chosen, strict=True):
            assert slot.pending is not None
            own = max(len(slot.data.train.input_ids[i]) for i in rows)
            slot.dropout.prepare(slot.progress.step, slot.pending.done, len(rows), own)
        return padded([slot.data.train for slot in slots], chosen, self._padding.training)

    def _book(self, slots: list[Slot], chosen: list[np.ndarray], losses: list[float], seconds: float) -> None:
        tokens = [slot.progress.tokens(rows) for slot, rows in zip(slots, chosen, strict=True)]
        self.tokens_per_second = sum(tokens) / seconds
        base = self._base.linears.total_parameters
        work = [training_flops(own, base, slot.parameter_count) for slot, own in zip(slots, tokens, strict=True)]
        for slot, loss, own, share in zip(slots, losses, tokens, work, strict=True):
            assert slot.pending is not None
            slot.pending.loss += loss
            slot.pending.tokens += own
            slot.pending.seconds += seconds * share / sum(work)
