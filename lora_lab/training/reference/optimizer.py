"""The optimizer that `Trainer` or `peft` makes, and its state as flat tensors for a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor
from transformers import Trainer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.study.settings import TrainingSettings

CONSTANTS = ("step", "qmap1", "qmap2")
"""Parts of an optimizer's state that follow from the number of steps, or never change."""


def make_optimizer(trainer: Trainer, training: TrainingSettings) -> Any:
    """A new optimizer as `Trainer` makes it, or for LoRA+ as `peft` does; the trainer's own stays what it is."""
    if training.loraplus_lr_ratio is None:
        kept, trainer.optimizer = trainer.optimizer, None
        made = trainer.create_optimizer()
        trainer.optimizer = kept
        return made
    optimizer, keywords = Trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    keywords |= {"loraplus_lr_ratio": training.loraplus_lr_ratio, "loraplus_weight_decay": training.weight_decay}
    return create_loraplus_optimizer(trainer.model, optimizer, **keywords)


def step_without_gradients(optimizer: Any) -> None:
    """Make the optimizer's state, as large as it will be; weight decay changes the parameters."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def state_tensors(optimizer: Any) -> list[Tensor]:
    """All that the optimizer keeps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def moments(optimizer: Any) -> dict[str, list[Tensor]]:
    """The optimizer's moments that a checkpoint must keep, by name and dtype, in the order of the parameters."""
    found: dict[str, list[Tensor]] = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in optimizer.state.get(parameter, {}).items():
                if key not in CONSTANTS and isinstance(value, Tensor):
                    found.setdefault(f"{key}_{str(value.dtype).removeprefix('torch.')}", []).append(value)
    return found


def restore_moments(optimizer: Any, tensors: Mapping[str, Tensor], step: int) -> None:
    """Put what `moments` gave after `step` steps, flat, into a new optimizer."""
    step_without_gradients(optimizer)
    for name, parts in moments(optimizer).items():
        fill(parts, tensors[name])
    for state in optimizer.state.values():
        if "step" in state:  # a number, or a tensor
            state["step"] = state["step"] * 0 + step


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """One tensor [n] on the CPU, a copy."""
    return torch.cat([tensor.detach().reshape(-1).cpu() for tensor in tensors])


@torch.no_grad()
def fill(parts: Sequence[Tensor], values: Tensor) -> None:
    """The reverse of `flat`."""
    for part, value in zip(parts, torch.split(values, [part.numel() for part in parts]), strict=True):
        part.copy_(value.view(part.shape))
