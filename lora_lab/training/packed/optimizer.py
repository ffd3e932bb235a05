"""A slot's optimizer: the ones a study can ask for, with state that a checkpoint keeps exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from torch import Tensor

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from lora_lab.study.settings import TrainingSettings

MOMENTS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
"""Names in a checkpoint, and what torch's AdamW calls them."""
SMALL = {"exp_avg": "state1", "exp_avg_sq": "state2"}
"""The same for the tensors of bitsandbytes that are too small for 8 bits."""
LARGE = {
    "exp_avg_8bit": "state1",
    "exp_avg_sq_8bit": "state2",
    "exp_avg_absmax": "absmax1",
    "exp_avg_sq_absmax": "absmax2",
}
SMALLEST_8BIT = 4096
"""Elements from which bitsandbytes quantizes a tensor's moments; its default, which `Trainer` keeps."""
BLOCK = 256
"""Elements that share one absmax."""


class SlotOptimizer:
    """Steps an adapter's A's and B's, with a learning rate for each of the two.

    Args:
        training: Which optimizer, and its settings.
        a: The parameters of the A's; each has its `grad`, which stays where it is.
        b: Those of the B's.

    LoRA+ (arXiv:2402.12354) as in `peft.optimizers.create_loraplus_optimizer`: B's rate is
    `loraplus_lr_ratio` times A's; weight decay acts on both.

    Raises:
        InputError: the optimizer does not compute in the dtype of the parameters.
    """

    def __init__(self, training: TrainingSettings, a: Sequence[Tensor], b: Sequence[Tensor]) -> None:
        self._leaves = (*a, *b)
        self._is_8bit = training.optim == "adamw_8bit"
        if self._is_8bit and self._leaves[0].dtype == torch.float64:
            raise InputError(
                "training.optim: bitsandbytes computes adamw_8bit in float32, but model.dtype is float64; "
                "use adamw_torch, or another dtype"
            )
        self._has_moments = training.optim != "sgd"
        self._ratios = (1.0, training.loraplus_lr_ratio or 1.0)
        self._optimizer = _make(training, [{"params": list(a)}, {"params": list(b)}])

    def step(self, learning_rate: float) -> None:
        """Change the parameters by their gradients; the rate is that of the A's."""
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = learning_rate * ratio
        self._optimizer.step()

    @property
    def state_sizes(self) -> dict[str, int]:
        """Elements of each tensor in `state` after the first step."""
        return {name: sum(sizes) for name, sizes in self._splits().items()}

    @property
    def state_bytes(self) -> int:
        """What the state occupies."""
        return sum(tensor.nbytes for _, tensor in self._entries())

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All that is kept between steps, the constants of bitsandbytes counted."""
        values = (value for leaf in self._leaves for value in self._optimizer.state[leaf].values())
        return tuple(value for value in values if isinstance(value, Tensor))

    def state(self) -> dict[str, Tensor]:
        """The moments [n] by name, over all parameters; empty before the first step and for plain SGD."""
        parts: dict[str, list[Tensor]] = {}
        for name, tensor in self._entries():
            parts.setdefault(name, []).append(tensor.reshape(-1))
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        for leaf in self._leaves:
            if state := self._optimizer.state[leaf]:
                for name, key in self._names(leaf).items():
                    yield name, state[key]

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up what `state` gave after `step` steps."""
        saved = self._optimizer.state_dict()
        saved["state"] = {}
        if step and self._has_moments:
            parts = {name: iter(torch.split(tensors[name], sizes)) for name, sizes in self._splits().items()}
            for index, leaf in enumerate(self._leaves):
                moments = {key: next(parts[name]) for name, key in self._names(leaf).items()}
                saved["state"][index] = self._constants(leaf, step) | moments
        self._optimizer.load_state_dict(saved)

    def _splits(self) -> dict[str, list[int]]:
        sizes: dict[str, list[int]] = {}
        for leaf in self._leaves:
            for name in self._names(leaf):
                sizes.setdefault(name, []).append(_size(name, leaf))
        return sizes

    def _names(self, leaf: Tensor) -> Mapping[str, str]:
        if not self._has_moments:
            return {}
        if not self._is_8bit:
            return MOMENTS
        return SMALL if leaf.numel() < SMALLEST_8BIT else LARGE

    def _constants(self, leaf: Tensor, step: int) -> dict[str, Any]:
        """The part of a parameter's state that is no moment, and follows from the number of steps."""
        if not self._is_8bit:
            return {"step": torch.tensor(float(step))}
        if leaf.numel() < SMALLEST_8BIT:
            return {"step": step}
        maps = self._optimizer.name2qmap
        return {"step": step, "qmap1": maps["dynamic"], "qmap2": maps["udynamic"]}


def _make(training: TrainingSettings, groups: list[dict[str, Any]]) -> Any:
    """As `Trainer` makes it; SGD has no momentum there either."""
    rate, decay = training.learning_rate, training.weight_decay
    adam: dict[str, Any] = {
        "betas": (training.adam_beta1, training.adam_beta2),
        "eps": training.adam_epsilon,
    }
    match training.optim:
        case "adamw_torch":
            return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True, **adam)
        case "adamw_8bit":
            return bitsandbytes.optim.AdamW8bit(
                groups, lr=rate, weight_decay=decay, min_8bit_size=SMALLEST_8BIT, **adam
            )
        case "sgd":
            return torch.optim.SGD(groups, lr=rate, weight_decay=decay)


def _size(name: str, leaf: Tensor) -> int:
    return -(-leaf.numel() // BLOCK) if name.endswith("absmax") else leaf.numel()
