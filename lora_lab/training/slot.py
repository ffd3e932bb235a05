"""One trial's place in a pack: its adapter, optimizer, schedule, data order, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lora_lab.study.errors import TrainingError
from lora_lab.training.adapters import Weights
from lora_lab.training.dropout import Dropout
from lora_lab.training.packed_linear import AdapterView
from lora_lab.training.schedule import learning_rate_factor

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import numpy as np

    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.datasets import TokenizedSplits
    from lora_lab.training.schedule import BatchPlan


@dataclass(slots=True)
class Progress:
    """How far a trial has come; saved with every checkpoint."""

    step: int = 0
    """Finished optimizer steps."""
    last_evaluation: int = 0
    """Number of the newest evaluation."""
    train_seconds: float = 0.0
    """This trial's share, by floating-point operations, of the time of the steps it took part in."""
    train_tokens: int = 0
    """Tokens that went through the model for this trial, padding not counted."""


@dataclass(slots=True)
class PendingStep:
    """The optimizer step in work: its micro-batches, and what the finished ones gave."""

    micro_batches: list[np.ndarray]
    label_tokens: int
    """Over all micro-batches of the step: the denominator of the loss."""
    done: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    tokens: int = 0

    @property
    def complete(self) -> bool:
        """Whether every micro-batch went through the model."""
        return self.done == len(self.micro_batches)


class Slot:
    """All state of one trial; nothing in it is shared with its neighbours.

    The adapter's parameters lie in one flat buffer [P]: module after module, A [r, d_in] then B^T [r, d_out].
    So clipping, the optimizer and a checkpoint handle one tensor each, whatever the number of modules.
    """

    def __init__(
        self,
        number: int,
        config: TrialConfig,
        *,
        weights: Mapping[str, Weights],
        plan: BatchPlan,
        data: TokenizedSplits,
        device: torch.device,
        compute_dtype: torch.dtype,
    ) -> None:
        self.number, self.config, self.plan, self.data = number, config, plan, data
        self.progress = Progress()
        self.pending: PendingStep | None = None
        self.dropout = Dropout(config.lora.lora_dropout, config.training.seed, device)
        self.parameters = torch.cat([t.reshape(-1) for w in weights.values() for t in (w.a, w.b.t())]).to(device)
        self.parameters.requires_grad_()
        self._gradient = torch.zeros_like(self.parameters, requires_grad=False)
        self.parameters.grad = self._gradient
        same = self.parameters.dtype == compute_dtype
        values = self.parameters.detach()
        self._computed = values if same else values.to(compute_dtype)
        self.adapters = self._views({name: (w.a.shape, w.b.t().shape) for name, w in weights.items()})
        training = config.training
        self.optimizer = torch.optim.AdamW(
            [self.parameters],
            lr=training.learning_rate,
            betas=(training.adam_beta1, training.adam_beta2),
            eps=training.adam_epsilon,
            weight_decay=training.weight_decay,
            fused=True,
        )

    def _views(self, shapes: Mapping[str, tuple[torch.Size, torch.Size]]) -> dict[str, AdapterView]:
        sizes = [shape.numel() for pair in shapes.values() for shape in pair]
        values, gradients = iter(torch.split(self._computed, sizes)), iter(torch.split(self._gradient, sizes))
        return {
            name: AdapterView(
                a=next(values).view(a_shape),
                bt=next(values).view(bt_shape),
                grad_a=next(gradients).view(a_shape),
                grad_bt=next(gradients).view(bt_shape),
                scaling=self.config.lora.scaling,
                dropout=partial(self.dropout.mask, index) if self.dropout.active else None,
            )
            for index, (name, (a_shape, bt_shape)) in enumerate(shapes.items())
        }

    @property
    def finished(self) -> bool:
        """Whether the last optimizer step is done."""
        return self.progress.step >= self.plan.total_steps

    @property
    def due_evaluation(self) -> int | None:
        """The number of the evaluation to make now, or None."""
        number = self.plan.evaluation(self.progress.step)
        return number if number is not None and number > self.progress.last_evaluation else None

    @property
    def memory_shape(self) -> Hashable:
        """What of the adapter decides its memory: where it sits, and its rank there."""
        return tuple((name, view.a.shape) for name, view in self.adapters.items())

    def resident_tensors(self) -> tuple[Tensor, ...]:
        """What the adapter occupies before its first step."""
        return self.parameters.detach(), self._gradient, self._computed

    @property
    def parameter_count(self) -> int:
        """Trained parameters."""
        return self.parameters.numel()

    def next_micro_batch(self) -> np.ndarray:
        """Indices of the training examples that go through the model next."""
        if self.pending is None:
            micro_batches = self.plan.micro_batches(self.progress.step)
            labels = sum(self.data.train.label_tokens(int(i)) for batch in micro_batches for i in batch)
            self.pending = PendingStep(micro_batches, labels)
        return self.pending.micro_batches[self.pending.done]

    def clip(self) -> Tensor:
        """Scale the gradient down to `max_grad_norm`; returns its norm before that, on the device."""
        limit = self.config.training.max_grad_norm
        return torch.nn.utils.clip_grad_norm_([self.parameters], limit if limit > 0 else float("inf"))

    @property
    def learning_rate(self) -> float:
        """Of the next optimizer step."""
        training = self.config.training
        return training.learning_rate * learning_rate_factor(self.progress.step, self.plan.total_steps, training)

    def update(self) -> PendingStep:
        """Make the optimizer step from the gathered gradient; returns what the step consisted of."""
        assert self.pending is not None
        assert self.pending.complete
        if self.progress.step == 0:
            self._prove_gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.step()
        self._gradient.zero_()
        self._refresh_computed()
        done, self.pending = self.pending, None
        self.progress.step += 1
        self.progress.train_seconds += done.seconds
        self.progress.train_tokens += done.tokens
        return done

    def _prove_gradients(self) -> None:
        """Every adapter must learn: B's first gradient is exactly zero only where it is cut off."""
        dead = [name for name, view in self.adapters.items() if not view.grad_bt.any()]
        if dead:
            raise TrainingError(
                f"{len(dead)} of {len(self.adapters)} adapted modules get no gradient (first: {dead[0]}), so "
                "they would not train; adapt other modules, or check that the base calls this one"
            )

    def _refresh_computed(self) -> None:
        if self._computed.dtype != self.parameters.dtype:
            self._computed.copy_(self.parameters.detach())

    def weights(self) -> dict[str, Weights]:
        """The adapter by full module name, as PEFT has it."""
        sizes = [tensor.numel() for view in self.adapters.values() for tensor in (view.a, view.bt)]
        values = iter(torch.split(self.parameters.detach(), sizes))
        return {
            name: Weights(next(values).view(view.a.shape), next(values).view(view.bt.shape).t())
            for name, view in self.adapters.items()
        }

    def state(self) -> dict[str, Tensor]:
        """Parameters and optimizer moments [P] each, on the CPU."""
        moments = self.optimizer.state[self.parameters]
        tensors = {"parameters": self.parameters.detach()}
        if moments:
            tensors |= {"exp_avg": moments["exp_avg"], "exp_avg_sq": moments["exp_avg_sq"]}
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def restore(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Take up from a checkpoint; a step that was half done when it was written starts again."""
        with torch.no_grad():
            self.parameters.copy_(tensors["parameters"])
        self._refresh_computed()
        self._gradient.zero_()
        self.progress, self.pending = progress, None
        if "exp_avg" in tensors:
            saved = self.optimizer.state_dict()
            saved["state"] = {
                0: {
                    "step": torch.tensor(float(progress.step)),
                    "exp_avg": tensors["exp_avg"],
                    "exp_avg_sq": tensors["exp_avg_sq"],
                }
            }
            self.optimizer.load_state_dict(saved)

    def abandon_step(self) -> None:
        """Forget the half-done optimizer step, after an error in the pack; it will start again."""
        self._gradient.zero_()
        self.pending = None
