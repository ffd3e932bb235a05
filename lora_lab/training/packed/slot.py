"""One trial's place in a pack: its adapter, its optimizer, its part of the step in work, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_lab.training.base.adapters import Weights
from lora_lab.training.dropout import Dropout
from lora_lab.training.gradient_check import require_gradients
from lora_lab.training.objective import objective_of
from lora_lab.training.packed.linear import AdapterView
from lora_lab.training.packed.optimizer import SlotOptimizer, sizes_to_step
from lora_lab.training.progress import TrialProgress
from lora_lab.training.trial import StepFigures

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import numpy as np

    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.datasets import TokenizedSplits
    from lora_lab.training.progress import Counters


@dataclass(slots=True)
class PendingStep:
    """The optimizer step in work: its micro-batches, and what the finished ones gave."""

    micro_batches: list[np.ndarray]
    denominator: int
    """What the losses of all micro-batches of the step are divided by."""
    done: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    tokens: int = 0

    @property
    def complete(self) -> bool:
        """Whether every micro-batch went through the model."""
        return self.done == len(self.micro_batches)


class Slot:
    """All state of one trial; nothing in it is shared with its neighbors.

    The adapter's parameters lie in one flat buffer [P]: the A [r, d_in] of module after module, then the B^T
    [r, d_out]. So clipping, the optimizer and a checkpoint handle one or two tensors, whatever the number of modules.
    """

    def __init__(
        self,
        number: int,
        config: TrialConfig,
        *,
        weights: Mapping[str, Weights],
        data: TokenizedSplits,
        device: torch.device,
        compute_dtype: torch.dtype,
        module_devices: Mapping[str, torch.device] | None = None,
    ) -> None:
        self.number, self.config, self.data = number, config, data
        self.progress = TrialProgress(config.training, data.train)
        self.objective = objective_of(config)
        self.pending: PendingStep | None = None
        self.dropout = Dropout(config.lora.lora_dropout, config.training.seed)
        # bitsandbytes quantizes moments in blocks along the memory, so there B must lie in it as PEFT has it.
        self._b_as_peft = config.training.optim == "adamw_8bit"
        sides = self._sides(weights)
        self.parameters = torch.cat([side.reshape(-1) for side in sides]).to(device)
        self.parameters.requires_grad_()
        self._gradient = torch.zeros_like(self.parameters, requires_grad=False)
        self.parameters.grad = self._gradient
        same = self.parameters.dtype == compute_dtype
        values = self.parameters.detach()
        self._computed = values if same else values.to(compute_dtype)
        self._shapes = [side.shape for side in sides]
        self._away_values: list[tuple[Tensor, Tensor]] = []
        """Views of the flat buffers, and their copies on the devices of modules that are elsewhere."""
        self._away_gradients: list[tuple[Tensor, Tensor]] = []
        self._leaves: list[Tensor] = []
        """What the optimizer steps: views of the parameters, with views of the gradient."""
        self.adapters = self._views(tuple(weights), module_devices or {})
        self._optimizer = self._make_optimizer()

    def _sides(self, weights: Mapping[str, Weights]) -> list[Tensor]:
        """All A's, then all B's, as they lie in the flat buffer."""
        pairs = weights.values()
        return [pair.a for pair in pairs] + [pair.b if self._b_as_peft else pair.b.t() for pair in pairs]

    def cut(self, flat: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The A's [r, d_in] and the B^T's [r, d_out] as views of a flat buffer [P], or of K of them [K, P]."""
        parts = torch.split(flat, [shape.numel() for shape in self._shapes], dim=-1)
        views = [part.view(*flat.shape[:-1], *shape) for part, shape in zip(parts, self._shapes, strict=True)]
        a, b = views[: len(views) // 2], views[len(views) // 2 :]
        return a, [view.mT for view in b] if self._b_as_peft else b

    def _views(self, names: tuple[str, ...], devices: Mapping[str, torch.device]) -> dict[str, AdapterView]:
        sides = zip(names, *self.cut(self._computed), *self.cut(self._gradient), strict=True)
        return {
            name: AdapterView(
                a=self._at(devices.get(name), a, self._away_values),
                bt=self._at(devices.get(name), bt, self._away_values),
                grad_a=self._at(devices.get(name), grad_a, self._away_gradients),
                grad_bt=self._at(devices.get(name), grad_bt, self._away_gradients),
                scaling=self.config.lora.scaling,
                dropout=partial(self.dropout.mask, index) if self.dropout.active else None,
                masked_scaling=self.config.lora.scaling * self.dropout.gain,
            )
            for index, (name, a, bt, grad_a, grad_bt) in enumerate(sides)
        }

    @staticmethod
    def _at(device: torch.device | None, view: Tensor, away: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The view itself where its module is on the same device, otherwise a copy at the module."""
        if device is None or device == view.device:
            return view
        copy = view.to(device, copy=True)
        away.append((view, copy))
        return copy

    def _make_optimizer(self) -> SlotOptimizer:
        for values, gradient in self._parts_to_step():
            leaf = values.detach().requires_grad_()
            leaf.grad = gradient
            self._leaves.append(leaf)
        of_a = len(self._sizes_to_step()[0])
        return SlotOptimizer(self.config.training, self._leaves[:of_a], self._leaves[of_a:])

    def _sizes_to_step(self) -> tuple[list[int], list[int]]:
        """Elements of what the optimizer steps one by one, of the A's and of the B's."""
        sizes, half = [shape.numel() for shape in self._shapes], len(self._shapes) // 2
        optim, device = self.config.training.optim, self.parameters.device
        return sizes_to_step(optim, sizes[:half], device), sizes_to_step(optim, sizes[half:], device)

    def _parts_to_step(self) -> list[tuple[Tensor, Tensor]]:
        """Parameters and gradients: those of the A's, then those of the B's."""
        sizes = [size for side in self._sizes_to_step() for size in side]
        values, gradients = torch.split(self.parameters.detach(), sizes), torch.split(self._gradient, sizes)
        return list(zip(values, gradients, strict=True))

    @property
    def block_shape(self) -> Hashable | None:
        """What slots have in common that can act as one block; None where modules of the base are elsewhere."""
        if self._away_values:
            return None
        dtypes = (self.parameters.dtype, self._computed.dtype)
        rows = self.config.training.per_device_train_batch_size
        return (tuple(self.adapters), tuple(self._shapes), self._b_as_peft, dtypes, self.dropout.active, rows)

    @property
    def flat(self) -> dict[str, Tensor]:
        """The flat buffers [P] by name; `computed` only where it is not the parameters themselves."""
        buffers = {"parameters": self.parameters.detach(), "gradient": self._gradient}
        return buffers if self._computed.dtype == self.parameters.dtype else buffers | {"computed": self._computed}

    def move(self, name: str, place: Tensor) -> None:
        """Let one of the flat buffers lie at another place [P] from now on, with all that is in it."""
        place.copy_(self.flat[name])
        is_computed = name == "computed" or (name == "parameters" and self._computed.dtype == self.parameters.dtype)
        if is_computed:
            self._computed = place
        if name == "parameters":
            self.parameters.data = place
        elif name == "gradient":
            self._gradient = self.parameters.grad = place
        for leaf, (values, gradient) in zip(self._leaves, self._parts_to_step(), strict=True):
            leaf.data, leaf.grad = values, gradient
        if is_computed:
            for view, a, bt in zip(self.adapters.values(), *self.cut(place), strict=True):
                view.a, view.bt = a, bt
        if name == "gradient":
            for view, a, bt in zip(self.adapters.values(), *self.cut(place), strict=True):
                view.grad_a, view.grad_bt = a, bt

    @property
    def memory_shape(self) -> Hashable:
        """What decides the trial's memory beside the rows of a step: its adapter's shapes, and how it is trained."""
        training, dropout = self.config.training, self.config.lora.lora_dropout > 0
        shapes = tuple((name, view.a.shape) for name, view in self.adapters.items())
        return (shapes, dropout, training.optim, training.gradient_checkpointing, self.config.data.packing)

    def tensors(self) -> dict[str, tuple[Tensor, ...]]:
        """What the trial keeps from step to step, by the terms of `memory`."""
        away_values, away_gradients = (
            tuple(copy for _, copy in pairs) for pairs in (self._away_values, self._away_gradients)
        )
        return {
            "gradients": (self._gradient, *away_gradients),
            "optimizer": self._optimizer.tensors,
            "adapters": (self.parameters.detach(), self._computed, *away_values),
        }

    @property
    def parameter_count(self) -> int:
        """Trained parameters."""
        return self.parameters.numel()

    @property
    def denominator(self) -> int:
        """What the losses of the optimizer step in work are divided by, 1 without one."""
        return 1 if self.pending is None else self.pending.denominator

    @property
    def recomputes(self) -> bool:
        """Whether activations are computed again in the backward pass instead of kept."""
        return self.config.training.gradient_checkpointing

    def next_micro_batch(self) -> np.ndarray:
        """Indices of the training examples that go through the model next."""
        if self.pending is None:
            return self.begin(self.progress.micro_batches).micro_batches[0]
        return self.pending.micro_batches[self.pending.done]

    def begin(self, micro_batches: list[np.ndarray]) -> PendingStep:
        """Let the optimizer step in work consist of these micro-batches."""
        self.pending = PendingStep(micro_batches, self.objective.denominator(self.data.train, micro_batches))
        return self.pending

    def clip(self) -> Tensor:
        """Scale the gradient down to `max_grad_norm`; returns its norm before that, on the device."""
        for view, copy in self._away_gradients:
            view.copy_(copy)
        limit = self.config.training.max_grad_norm
        return torch.nn.utils.clip_grad_norm_([self.parameters], limit if limit > 0 else float("inf"))

    def update(self, grad_norm: float) -> StepFigures:
        """Make the optimizer step from the gathered gradient, unless its loss or norm is not finite.

        Args:
            grad_norm: What `clip` returned.

        Raises:
            TrainingError: an adapter gets no gradient in the first step, and so would not train.
        """
        assert self.pending is not None
        assert self.pending.complete
        figures = StepFigures(self.pending.loss, grad_norm, self.progress.learning_rate)
        if not figures.finite:
            return figures
        if self.progress.step == 0:
            require_gradients({name: view.grad_bt for name, view in self.adapters.items()})
        self.step_optimizer()
        done, self.pending = self.pending, None
        self.progress.advance(done.seconds, done.tokens)
        return figures

    def step_optimizer(self) -> None:
        """Change the parameters by their gradients, which are zero afterwards."""
        self._optimizer.step(self.progress.learning_rate)
        self.zero_gradient()
        self._refresh_computed()

    def zero_gradient(self) -> None:
        """Forget what was added to the gradient."""
        self._gradient.zero_()
        for _, copy in self._away_gradients:
            copy.zero_()

    def _refresh_computed(self) -> None:
        if self._computed.dtype != self.parameters.dtype:
            self._computed.copy_(self.parameters.detach())
        for view, copy in self._away_values:
            copy.copy_(view)

    def weights(self) -> dict[str, Weights]:
        """The adapter by full module name, as PEFT has it."""
        sides = zip(self.adapters, *self.cut(self.parameters.detach()), strict=True)
        return {name: Weights(a, bt.t()) for name, a, bt in sides}

    @property
    def added_parameters(self) -> int:
        """Trained parameters that the base does not have."""
        return self.parameter_count

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the trained parameters."""
        return self.parameters.nbytes

    @property
    def optimizer_bytes(self) -> int:
        """Bytes that the optimizer keeps beside the parameters."""
        return self._optimizer.state_bytes

    @property
    def state_sizes(self) -> dict[str, int]:
        """Elements of each tensor in `state` after the first step; before it there are the parameters only."""
        return {"parameters": self.parameter_count} | self._optimizer.state_sizes

    def values(self) -> Tensor:
        """The trained parameters [P], as a copy on the CPU; the device needs no memory for it."""
        return self.parameters.detach().to("cpu", copy=True)

    def put(self, values: Tensor) -> None:
        """Let the trained parameters have these values [P]; the optimizer's state stays."""
        with torch.no_grad():
            self.parameters.copy_(values)
        self._refresh_computed()

    def state(self) -> dict[str, Tensor]:
        """Parameters [P] and, from the first step on, the optimizer's state; as copies on the CPU.

        The device needs no memory for it.
        """
        parameters = {"parameters": self.values()}
        return parameters | self._optimizer.state() if self.progress.step else parameters

    def restore(self, tensors: Mapping[str, Tensor], counters: Counters) -> None:
        """Take up from a checkpoint; a step that was half done when it was written starts again."""
        self.put(tensors["parameters"])
        self.zero_gradient()
        self.progress.counters, self.pending = counters, None
        self._optimizer.restore(tensors, counters.step)

    def abandon_step(self) -> None:
        """Forget the half-done optimizer step, after an error in the pack; it will start again."""
        self.zero_gradient()
        self.pending = None
