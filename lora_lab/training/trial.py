"""A trial in training as everything around an engine's own step sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    from torch import Tensor

    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.datasets import TokenizedSplits
    from lora_lab.training.objective import Objective
    from lora_lab.training.progress import Counters, TrialProgress


class Trial(Protocol):
    """One trial in training, on either engine: a `Slot` of the packed one, or a `ReferenceTrial`."""

    number: int
    config: TrialConfig
    data: TokenizedSplits
    progress: TrialProgress
    objective: Objective

    @property
    def parameter_count(self) -> int:
        """Trained parameters of every kind."""

    @property
    def added_parameters(self) -> int:
        """Trained parameters that the base does not have: all but its own biases."""

    @property
    def adapter_bytes(self) -> int:
        """Bytes of the trained parameters."""

    @property
    def optimizer_bytes(self) -> int:
        """Bytes that the optimizer keeps beside the parameters, from the first step on at the latest."""

    @property
    def memory_shape(self) -> Hashable:
        """What decides the trial's memory beside the rows of a step: its adapter's shapes, and how it is trained."""

    @property
    def state_sizes(self) -> Mapping[str, int]:
        """Elements of each tensor in `state` after the first step; before it there are the parameters only."""

    def values(self) -> Tensor:
        """The trained parameters [P], as a copy on the CPU; the device needs no memory for it."""

    def put(self, values: Tensor) -> None:
        """Let the trained parameters have these values [P]; the optimizer's state stays."""

    def state(self) -> dict[str, Tensor]:
        """Parameters [P] and the optimizer's state, on the CPU: what a checkpoint keeps beside the counters."""

    def restore(self, tensors: Mapping[str, Tensor], counters: Counters) -> None:
        """Take up a state that was kept; a step that was half done then starts again."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """One optimizer step: its loss, its gradient's norm before clipping, and its learning rate."""

    loss: float
    grad_norm: float
    learning_rate: float

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers that training can go on from."""
        return abs(self.loss) < float("inf") and self.grad_norm < float("inf")
