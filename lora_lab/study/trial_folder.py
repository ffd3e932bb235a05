"""What a trial keeps on disk, by name: training writes it, and what comes after training reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.study.measures import EVAL_LOSS, on_test

if TYPE_CHECKING:
    from collections.abc import Container, Iterator
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class TrialFolder:
    """The paths inside one trial's folder, or inside that of a shorter run which its trajectory contains."""

    path: Path

    @classmethod
    def of(cls, trials: Path, number: int) -> TrialFolder:
        """The folder of trial `number` among those of its study."""
        return cls(trials / f"{number:04d}")

    @classmethod
    def of_base(cls, trials: Path) -> TrialFolder:
        """The folder of what the bare base was measured by, among those of the trials."""
        return cls(trials / "base")

    @property
    def checkpoint(self) -> Path:
        """The folder that holds what the trial goes on from after a stop."""
        return self.path / "checkpoint"

    @property
    def adapter(self) -> Path:
        """The trained adapter's folder, as `PeftModel.from_pretrained` loads it."""
        return self.path / "adapter"

    def evaluation(self, number: int, measure: str = EVAL_LOSS.name) -> Path:
        """The file with every held-out example's loss, or negative score, at evaluation `number`, from 1."""
        name = "eval" if measure == EVAL_LOSS.name else measure
        return self.path / "evaluations" / f"{name}-{number:04d}.safetensors"

    def predictions(self, number: int, *, test: bool = False) -> Path:
        """The file with what was made of every held-out prompt at evaluation `number`, a JSON object each.

        Args:
            number: From 1.
            test: Of the test rows instead.
        """
        return self.path / "evaluations" / f"{on_test('predictions') if test else 'predictions'}-{number:04d}.jsonl"

    def evaluations(self, numbers: Container[int]) -> Iterator[Path]:
        """All files of these evaluations that are there."""
        found = sorted((self.path / "evaluations").glob("*-[0-9][0-9][0-9][0-9].*"))
        return (path for path in found if int(path.stem.rpartition("-")[2]) in numbers)

    @property
    def forgetting(self) -> Path:
        """The file with the loss of every example of the forgetting text, at the end."""
        return self.path / "evaluations" / "forgetting.safetensors"

    def shorter_run(self, epochs: int) -> TrialFolder:
        """The folder of the shorter run of so many epochs, until its files are a trial's own."""
        return TrialFolder(self.path / f"epochs-{epochs:04d}")

    def shorter_runs(self) -> Iterator[TrialFolder]:
        """The folders of all shorter runs that are there."""
        return map(TrialFolder, self.path.glob("epochs-*"))
