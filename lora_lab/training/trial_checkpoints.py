"""The checkpoints of trials, each in its trial's folder: taken up, replaced, and left for shorter runs that branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.checkpoint import BEST, checkpoint_identity, read_checkpoint, write_checkpoint
from lora_lab.training.device import shortage_of_memory
from lora_lab.training.milestones import begin_folder
from lora_lab.training.trial_events import milestone_reached

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lora_lab.study.events import Milestone
    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.trial import Trial


class TrialCheckpoints:
    """Keeps the checkpoints of trials.

    Args:
        trials_folder: Each trial has a folder of its own here.
    """

    def __init__(self, trials_folder: Path) -> None:
        self._trials_folder = trials_folder

    def take_up(self, trial: Trial, shorter: Sequence[TrialConfig]) -> None:
        """Bring a trial to where its checkpoint is, if it has one, and plan the milestones that lie ahead.

        Raises:
            CheckpointError: the checkpoint is damaged, or belongs to another configuration.
        """
        folder = TrialFolder.of(self._trials_folder, trial.number).checkpoint
        saved = read_checkpoint(folder, checkpoint_identity(trial.config, trial.data), trial.state_sizes)
        if saved is not None:
            tensors, counters = saved
            trial.progress.best_parameters = tensors.pop(BEST, None)
            trial.restore(tensors, counters)
        trial.progress.expect(shorter)

    def save(self, trial: Trial) -> None:
        """Replace a trial's checkpoint by its state now; without memory to gather that, the old one stays.

        Raises:
            StorageError: it cannot be written; the old checkpoint stays whole.
        """
        files = TrialFolder.of(self._trials_folder, trial.number)
        shortage_of_memory(lambda: self._write(files, trial, trial.config))

    def branch_off(self, trial: Trial) -> Iterator[Milestone]:
        """Leave checkpoints for the shorter runs whose rates begin to fall here, once their evaluation here is made."""
        progress = trial.progress
        if progress.due_evaluation is not None:
            return
        for milestone in tuple(progress.milestones):
            if milestone.step == progress.step and not milestone.ends:
                progress.milestones.remove(milestone)
                evaluations = progress.counters.last_evaluation
                files = TrialFolder.of(self._trials_folder, trial.number)
                self._write(begin_folder(files, milestone.epochs, evaluations), trial, milestone.config)
                yield milestone_reached(trial, milestone, evaluations, {})

    @staticmethod
    def _write(files: TrialFolder, trial: Trial, config: TrialConfig) -> None:
        identity, progress = checkpoint_identity(config, trial.data), trial.progress
        best = {} if progress.best_parameters is None else {BEST: progress.best_parameters}
        write_checkpoint(files.checkpoint, identity, trial.state() | best, progress.counters)
