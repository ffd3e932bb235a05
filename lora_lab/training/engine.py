"""A training engine: what a runner sees of it, whichever of the two trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_lab.study.events import OutOfMemory, TrialEvent
    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.memory.trial_memory import TrialMemory
    from lora_lab.training.trial import Trial


class Engine(Protocol):
    """Trains trials on one base, step by step, and tells what happened.

    For a trial that both engines can train, both tell the same events with the same numbers, and leave the same files.
    A trial's numbers do not depend on what else the engine trains or has trained, nor on where it was interrupted.
    What is wrong with the disk, or refused on admission, is raised; what befalls one trial in training is an event.
    """

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in training, in the order of admission."""

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second of all trials together, in the newest step; 0 before the first."""

    def trial(self, number: int) -> Trial:
        """The trial in training that has this number; it is the engine's own, to be read and not to be changed.

        Raises:
            KeyError: no active trial has it.
        """

    def trial_folder(self, number: int) -> Path:
        """Where a trial's checkpoint, evaluations and adapter lie (`TrialFolder` knows their names)."""

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """The bare base's eval_loss and loss on the forgetting text, None without one; in nats per label token.

        Each distinct data settings are measured once.
        """

    def base_scores(self, config: TrialConfig) -> dict[str, float]:
        """The bare base's metrics, those that `config.evaluation` asks for.

        Raises:
            InputError: the held-out rows have no answers, or the base cannot give them.
        """

    def admit(self, number: int, config: TrialConfig, shorter: Sequence[TrialConfig] = ()) -> OutOfMemory | None:
        """Take up a trial, at its checkpoint if it has one.

        Args:
            number: The trial; its folder's name comes from it.
            config: What it trains.
            shorter: Configurations with fewer epochs, and otherwise the same, whose results are wanted too: each
                gives a `Milestone` where that run ends, or begins to differ from this one.

        Returns:
            How it ended, where the device has no room for it even alone; it is not active then.

        Raises:
            InputError: its adapter cannot be put on this base, or its data cannot be right.
            CheckpointError: its checkpoint is damaged, or belongs to another configuration.
        """

    def memory(self, number: int) -> TrialMemory | None:
        """What an active trial needs at its peak, alone; None where there was no room to measure it.

        Raises:
            KeyError: no active trial has this number.
        """

    def step(self) -> list[TrialEvent]:
        """Train every active trial a little, at most by one optimizer step, and make the evaluations that are due.

        Returns:
            What happened, in order; a trial that ended (`Finished`, `Diverged`, `Failed`, `OutOfMemory`) has left.

        Raises:
            StorageError: a file cannot be written (disk full, no permission).
        """

    def save_checkpoints(self) -> None:
        """Write every active trial's state to its folder, so that `admit` goes on from here.

        A trial whose state there is no memory to gather keeps its older checkpoint.

        Raises:
            StorageError: one cannot be written; the old checkpoints stay whole.
        """

    def save_adapter(self, number: int, folder: Path) -> None:
        """Write an active trial's adapter, as it is now, into a folder that `PeftModel.from_pretrained` loads.

        Raises:
            KeyError: no active trial has this number.
            StorageError: it cannot be written.
        """

    def discard(self, number: int) -> None:
        """Give a trial up without a word, unless it is not there; its folder stays, and its neighbors do not notice."""
