"""One trial on the reference engine: its model, its `Trainer`, and how far it has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_lab.training.batch import PackedBatch, padded
from lora_lab.training.dropout import Dropout
from lora_lab.training.gradient_check import require_gradients
from lora_lab.training.live_bytes import LiveBytes, quantization_tensors, resident_tensors
from lora_lab.training.objective import objective_of
from lora_lab.training.progress import TrialProgress
from lora_lab.training.reference.losses import label_losses
from lora_lab.training.reference.model import adapter_tensors, peft_model, set_mode, trained
from lora_lab.training.reference.optimizer import (
    fill,
    flat,
    make_optimizer,
    moments,
    restore_moments,
    state_tensors,
    step_without_gradients,
)
from lora_lab.training.reference.stepwise import Stepwise
from lora_lab.training.reference.trainer import ReferenceTrainer

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence
    from pathlib import Path

    import numpy as np
    from torch import Tensor

    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.datasets import TokenizedSplits
    from lora_lab.training.progress import Counters
    from lora_lab.training.reference.trainer import Step
    from lora_lab.training.trial import StepFigures


INPUTS = ("input_ids", "labels", "position_ids", "classes", "attention_mask", "token_type_ids")
"""The tensors of a batch, which `Trainer` moves to its device."""


class ReferenceTrial:
    """All state of one trial.

    Args:
        number: The trial's.
        config: What to train.
        base: The base that trials share; stays as it is.
        data: The trial's token sets.
        folder: Room for `Trainer`'s own files; it keeps none there.

    Raises:
        InputError: PEFT cannot do this to this base.
    """

    def __init__(self, number: int, config: TrialConfig, base: Base, *, data: TokenizedSplits, folder: Path) -> None:
        self.number, self.config, self.data = number, config, data
        self.progress = TrialProgress(config.training, data.train)
        self.objective = objective_of(config)
        self._base = base
        self._dropout = Dropout(config.lora.lora_dropout, config.training.seed)
        self.model = peft_model(base, config, self._dropout)
        self.parameters = trained(self.model)
        self.initial = adapter_tensors(self.model) if config.lora.initialization.is_convertible else {}
        """The adapter before the first step, where the outcome is told by its difference from that."""
        self._trainer = ReferenceTrainer(
            self.model,
            config.training,
            plan=self.progress.plan,
            collate=self._collate,
            loss_of=self._loss_of,
            folder=folder,
            device=base.device,
        )
        self._steps = Stepwise(self._train)

    @property
    def parameter_count(self) -> int:
        """Trained parameters of every kind."""
        return sum(parameter.numel() for parameter in self.parameters.values())

    @property
    def added_parameters(self) -> int:
        """Trained parameters that the base does not have: all but its own biases."""
        names = {name for name, _ in self._base.model.named_parameters()}
        own = (name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in self.parameters)
        sizes = zip(own, self.parameters.values(), strict=True)
        return sum(parameter.numel() for name, parameter in sizes if name not in names)

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the trained parameters."""
        return sum(parameter.nbytes for parameter in self.parameters.values())

    @property
    def optimizer_bytes(self) -> int:
        """Bytes that the optimizer keeps beside the parameters; 0 before the first step."""
        return sum(tensor.nbytes for tensors in moments(self._trainer.optimizer).values() for tensor in tensors)

    @property
    def memory_shape(self) -> Hashable:
        """What decides the trial's memory beside the rows of a step: what is trained, and how."""
        lora, training = self.config.lora, self.config.training
        shapes = tuple((name, parameter.shape) for name, parameter in self.parameters.items())
        how = (lora.init_lora_weights, lora.lora_dropout > 0, training.optim, training.gradient_checkpointing)
        return (shapes, how, self.config.data.packing)

    # Training

    def step(self) -> StepFigures:
        """Make one optimizer step.

        Raises:
            TrainingError: an adapter gets no gradient, and so would not train.
        """
        step = self._steps.next()
        assert step is not None
        tokens = sum(self.progress.tokens(rows) for rows in self.progress.micro_batches)
        self.progress.advance(step.seconds, tokens)
        return step.figures

    def close(self) -> None:
        """Let `Trainer` come to its end, wherever it is."""
        self._steps.close()

    def _train(self, hand_over: Callable[[Step], bool]) -> None:
        """What runs in a thread of its own."""
        if self._base.device.type == "cuda":
            torch.cuda.set_device(self._base.device)  # each thread has its own current device
        self._trainer.train_from(self.progress.step, hand_over, self._prove_gradients)

    def _collate(self, rows: Sequence[int] | np.ndarray) -> dict[str, Tensor]:
        batch = padded([self.data.train], [rows])
        given = {name: getattr(batch, name) for name in INPUTS}
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def _loss_of(self, inputs: Mapping[str, Tensor], micro_batch: int) -> Tensor:
        """A micro-batch's part of the loss of the step in work."""
        ids = inputs["input_ids"]
        self._dropout.prepare(self.progress.step, micro_batch, *ids.shape)
        set_mode(self.model, training=True)
        batch = PackedBatch(rows=(len(ids),), **inputs)
        denominator = self.objective.denominator(self.data.train, self.progress.micro_batches)
        return self.objective.loss(label_losses(self._base, self.model, batch), denominator)

    def _prove_gradients(self) -> None:
        """See that every adapter learns, at the first step."""
        of_b = {name: parameter.grad for name, parameter in self.parameters.items() if ".lora_B." in name}
        require_gradients(
            {name.removeprefix("base_model.model.").split(".lora_B")[0]: gradient for name, gradient in of_b.items()}
        )

    # Memory

    def count_step(self, rows: np.ndarray, between: Callable[[], object] | None = None) -> LiveBytes:
        """Count the memory of one training step of these rows; the trial is then where it was before.

        The optimizer's state is there from the beginning, as it is in every step but the first.

        Args:
            rows: The training examples.
            between: Called before every operation of the step; what it raises ends the counting.
        """
        before = self.values()
        optimizer = make_optimizer(self._trainer, self.config.training)
        step_without_gradients(optimizer)
        live = LiveBytes(between=between)
        live.count("adapters", self.parameters.values())
        live.count("base", resident_tensors(self.model))
        live.count("quantization", quantization_tensors(self.model))
        live.count("optimizer", state_tensors(optimizer))
        limit = self.config.training.max_grad_norm
        try:
            with live:
                self._loss_of(self._collate(rows), 0).backward()
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit if limit > 0 else float("inf"))
                live.begin("optimizer")
                optimizer.step()
        finally:
            optimizer.zero_grad()
            self.put(before)
        return live

    # Checkpoints

    @property
    def state_sizes(self) -> dict[str, int]:
        """Elements of each tensor in `state` after the first step; before it there are the parameters only."""
        before = self.values()
        optimizer = make_optimizer(self._trainer, self.config.training)
        step_without_gradients(optimizer)
        self.put(before)
        kept = {name: sum(tensor.numel() for tensor in parts) for name, parts in moments(optimizer).items()}
        return {"parameters": self.parameter_count} | kept

    def values(self) -> Tensor:
        """The trained parameters [P], as a copy on the CPU."""
        return flat(self.parameters.values())

    def put(self, values: Tensor) -> None:
        """Let the trained parameters have these values [P]; the optimizer's state stays."""
        fill(list(self.parameters.values()), values)

    def state(self) -> dict[str, Tensor]:
        """Parameters [P] and the optimizer's state, on the CPU."""
        kept = {name: flat(parts) for name, parts in moments(self._trainer.optimizer).items()}
        return {"parameters": self.values()} | kept

    def restore(self, tensors: Mapping[str, Tensor], counters: Counters) -> None:
        """Take up from a checkpoint; to be called before the first step."""
        self.progress.counters = counters
        if counters.step:
            restore_moments(self._trainer.optimizer, tensors, counters.step)
        self.put(tensors["parameters"])
        self._trainer.skip(counters.step)
