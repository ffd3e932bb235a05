"""Shorter runs inside a longer one: the optimizer step at which each ends or parts from it, and its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.common.files import write_durably
from lora_lab.study.trajectory import folder_of_shorter
from lora_lab.training.schedule import BatchPlan, shared_steps

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from lora_lab.study.settings import TrialConfig

EVALUATIONS = "evaluations"


@dataclass(frozen=True, slots=True)
class Boundary:
    """Where a shorter run that a trial contains is all there, or goes on by itself."""

    step: int
    """Optimizer steps that both take alike."""
    config: TrialConfig
    """Of the shorter run."""
    ends: bool
    """Whether that is its last step."""

    @property
    def epochs(self) -> int:
        """Of the shorter run."""
        return self.config.training.num_train_epochs


def boundaries(examples: int, shorter: Iterable[TrialConfig]) -> list[Boundary]:
    """The boundaries of the runs in `shorter` on so many training examples; none where no step is shared."""
    found = []
    for config in shorter:
        total_steps = BatchPlan(examples, config.training).total_steps
        step = shared_steps(config.training, total_steps)
        if step:
            found.append(Boundary(step, config, ends=step == total_steps))
    return found


def begin_folder(trial_folder: Path, epochs: int, evaluations: int) -> Path:
    """Make the folder of a shorter run inside that of the trial which contains it, with its first evaluations.

    Raises:
        StorageError: it cannot be written.
    """
    folder = folder_of_shorter(trial_folder, epochs)
    for number in range(1, evaluations + 1):
        name = evaluation_file(number)
        write_durably(folder / EVALUATIONS / name, (trial_folder / EVALUATIONS / name).read_bytes())
    return folder


def evaluation_file(number: int) -> str:
    """The name of the file with the losses of every example at evaluation `number`."""
    return f"eval-{number:04d}.safetensors"
