"""Milestones of a trajectory: the optimizer step at which each shorter run ends or parts from it, and its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.common.files import write_durably
from lora_lab.training.schedule import BatchPlan, shared_steps

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.trial_folder import TrialFolder


@dataclass(frozen=True, slots=True)
class PlannedMilestone:
    """The step of a trajectory at which a shorter run is read off, or branches from it."""

    step: int
    """Optimizer steps that the trajectory and the shorter run take alike."""
    config: TrialConfig
    """The configuration of the shorter run."""
    ends: bool
    """Whether the shorter run is read off: this is its last step."""

    @property
    def epochs(self) -> int:
        """How many epochs the shorter run has."""
        return self.config.training.num_train_epochs


def planned_milestones(examples: int, shorter: Iterable[TrialConfig]) -> list[PlannedMilestone]:
    """The milestones of the runs in `shorter` on so many training examples; none where no step is shared."""
    found = []
    for config in shorter:
        total_steps = BatchPlan(examples, config.training).total_steps
        step = shared_steps(config.training, total_steps)
        if step:
            found.append(PlannedMilestone(step, config, ends=step == total_steps))
    return found


def begin_folder(trajectory: TrialFolder, epochs: int, evaluations: int) -> TrialFolder:
    """Make the folder of a shorter run inside that of its trajectory, with its first evaluations.

    Raises:
        StorageError: it cannot be written.
    """
    files = trajectory.shorter_run(epochs)
    for path in trajectory.evaluations(range(1, evaluations + 1)):
        write_durably(files.path / path.relative_to(trajectory.path), path.read_bytes())
    return files
