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

    All that it keeps is made with it, so that a step allocates nothing: where memory runs out, every step is either
    made or not begun.

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
        self._decay_into_gradient = 0.0 if self._has_moments else training.weight_decay
        self._ratios = (1.0, training.loraplus_lr_ratio or 1.0)
        self._optimizer = _make(training, [{"params": list(a)}, {"params": list(b)}])
        if self._has_moments:
            for leaf in self._leaves:
                self._optimizer.state[leaf] = self._initial(leaf)

    def step(self, learning_rate: float) -> None:
        """Change the parameters by their gradients; the rate is that of the A's."""
        for group, ratio in zip(self._optimizer.param_groups, self._ratios, strict=True):
            group["lr"] = learning_rate * ratio
        if self._decay_into_gradient:  # torch's SGD would add the decay to a copy of the gradient
            for leaf in self._leaves:
                assert leaf.grad is not None
                leaf.grad.add_(leaf.detach(), alpha=self._decay_into_gradient)
        if self._is_8bit:
            self._update_8bit()
        else:
            self._optimizer.step()

    def _update_8bit(self) -> None:
        """What the optimizer's own `step` does, but for waiting for the device after every tensor."""
        for index, group in enumerate(self._optimizer.param_groups):
            for place, leaf in enumerate(group["params"]):
                self._optimizer.update_step(group, leaf, index, place)

    @property
    def state_sizes(self) -> dict[str, int]:
        """Elements of each tensor in `state`."""
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
        """The moments [n] by name, over all parameters, as copies on the CPU; empty for plain SGD.

        Each is put together on the CPU, as the device may have no room for a copy.
        """
        parts: dict[str, list[Tensor]] = {}
        for name, tensor in self._entries():
            parts.setdefault(name, []).append(tensor.reshape(-1).cpu())
        return {name: torch.cat(tensors) for name, tensors in parts.items()}

    def _entries(self) -> Iterator[tuple[str, Tensor]]:
        for leaf in self._leaves:
            for name, key in self._names(leaf).items():
                yield name, self._optimizer.state[leaf][key]

    def restore(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Take up what `state` gave after `step` steps; with 0 of them, be as new."""
        parts = {name: iter(torch.split(tensors[name], sizes)) for name, sizes in self._splits().items() if step}
        for name, tensor in self._entries():
            if step:
                tensor.view(-1).copy_(next(parts[name]))
            else:
                tensor.zero_()
        for leaf in self._leaves if self._has_moments else ():
            count = self._optimizer.state[leaf]["step"]
            self._optimizer.state[leaf]["step"] = count.fill_(step) if isinstance(count, Tensor) else step

    def _splits(self) -> dict[str, list[int]]:
        sizes: dict[str, list[int]] = {}
        for name, tensor in self._entries():
            sizes.setdefault(name, []).append(tensor.numel())
        return sizes

    def _names(self, leaf: Tensor) -> Mapping[str, str]:
        if not self._has_moments:
            return {}
        if not self._is_8bit:
            return MOMENTS
        return SMALL if leaf.numel() < SMALLEST_8BIT else LARGE

    def _initial(self, leaf: Tensor) -> dict[str, Any]:
        """A parameter's state before the first step, as its optimizer would make it in that step."""
        if not self._is_8bit:
            moments = {key: torch.zeros_like(leaf, requires_grad=False) for key in MOMENTS.values()}
            return {"step": leaf.new_zeros((), dtype=torch.float32)} | moments
        is_small = leaf.numel() < SMALLEST_8BIT
        dtype = torch.float32 if is_small else torch.uint8
        state = {"step": 0} | {key: torch.zeros_like(leaf, dtype=dtype, requires_grad=False) for key in SMALL.values()}
        if is_small:
            return state
        maps, blocks = self._optimizer.name2qmap, -(-leaf.numel() // BLOCK)
        for name, value in maps.items():
            maps[name] = value.to(leaf.device)  # once: all parameters share them
        scales = {key: leaf.new_zeros(blocks, dtype=torch.float32) for key in ("absmax1", "absmax2")}
        return state | scales | {"qmap1": maps["dynamic"], "qmap2": maps["udynamic"]}


def _make(training: TrainingSettings, groups: list[dict[str, Any]]) -> Any:
    """As `Trainer` makes it, but for the weight decay of SGD, which has no momentum there either."""
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
            return torch.optim.SGD(groups, lr=rate)


def sizes_to_step(optim: str, sizes: Sequence[int], device: torch.device) -> list[int]:
    """How a flat side of an adapter is cut into the tensors that its optimizer steps one by one.

    Most optimizers work element by element, so that a side is one tensor. 8-bit AdamW shares a scale among 256 elements
    of a tensor and keeps small tensors in 32 bits: tensors that follow each other are the same as one where each is
    large enough and ends with a whole block. On a CPU they stay apart, as its kernels need buffers of a tensor's size.

    Args:
        optim: As in `TrainingSettings`.
        sizes: Elements of the modules' matrices, in the order of memory.
        device: Where they are.
    """
    if optim != "adamw_8bit":
        return [sum(sizes)]
    return list(sizes) if device.type == "cpu" else _joined(sizes)


def _joined(sizes: Sequence[int]) -> list[int]:
    """The sizes with those added up that follow each other as whole blocks of 8-bit moments."""
    joined: list[int] = []
    goes_on = False
    for size in sizes:
        is_8bit = size >= SMALLEST_8BIT
        if goes_on and is_8bit:
            joined[-1] += size
        else:
            joined.append(size)
        goes_on = is_8bit and size % BLOCK == 0
    return joined
