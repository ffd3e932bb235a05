"""Where a study keeps its files: `runs/<study_name>/`, and nothing outside it."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lab.common.errors import StorageError
from lora_lab.common.files import move_folder
from lora_lab.study.trial_folder import TrialFolder

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult

RUNS = Path("runs")
PROBE_BYTES = 1 << 16
"""Written once at the start of a run: a full disk takes empty files."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one study."""

    root: Path

    @classmethod
    def of(cls, study_name: str, runs: Path = RUNS) -> RunFolder:
        """The folder of a study; study names are safe as folder names (`StudySpec` sees to it)."""
        return cls(runs / study_name)

    @property
    def database(self) -> Path:
        """Optuna's storage, unless the study names another."""
        return self.root / "study.db"

    @property
    def trials(self) -> Path:
        """One folder per trial: checkpoint, evaluations, adapter."""
        return self.root / "trials"

    @property
    def data_cache(self) -> Path:
        """Generated and converted datasets."""
        return self.root / "data"

    @property
    def lease(self) -> Path:
        """Held by the coordinator."""
        return self.root / "coordinator.lock"

    @property
    def best(self) -> Path:
        """Adapter and configuration of the trial with the lowest loss."""
        return self.root / "best"

    @property
    def recommended(self) -> Path:
        """Adapter and configuration of the cheapest trial that is as good as the best."""
        return self.root / "recommended"

    @property
    def exports(self) -> Path:
        """Files for other trainers and servers: `<trial>/<target>/`."""
        return self.root / "exports"

    @property
    def evaluate(self) -> Path:
        """What lm-evaluation-harness measured: `<task>.json`."""
        return self.root / "evaluate"

    @property
    def status(self) -> Path:
        """What the coordinator is doing, for watchers."""
        return self.root / "status.json"

    @property
    def report(self) -> Path:
        """The report page."""
        return self.root / "report.html"

    @property
    def figures(self) -> Path:
        """The report's key figures as PNG."""
        return self.root / "figures"

    @property
    def summary(self) -> Path:
        """The report in short, as Markdown."""
        return self.root / "summary.md"

    def trial(self, number: int) -> Path:
        """One trial's folder."""
        return self.files_of(number).path

    def files_of(self, number: int) -> TrialFolder:
        """The names of what one trial keeps in its folder."""
        return TrialFolder.of(self.trials, number)

    def make(self) -> None:
        """Create the folder.

        Raises:
            StorageError: it cannot be created or written.
        """
        probe = self.root / ".writable"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(bytes(PROBE_BYTES))
            probe.unlink()
        except OSError as error:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
            raise StorageError(
                f"the run folder {self.root} cannot be written ({error.strerror}); "
                "fix its permissions, free space, or run from another folder"
            ) from error

    def adapter_of(self, result: TrialResult) -> Path:
        """Where the adapter of a trial lies, or lay: in its own folder, or in that of a trial equivalent to it."""
        own = self.files_of(result.number)
        return (own if result.source is None or own.path.exists() else self.files_of(result.source)).adapter

    def adopt_shorter_run(self, source: int, epochs: int, number: int) -> None:
        """Make the files of a shorter run in the folder of trial `source` those of trial `number`, where there are any.

        Raises:
            StorageError: they cannot be moved.
        """
        files, target = self.files_of(source).shorter_run(epochs).path, self.trial(number)
        if not files.is_dir():
            return
        move_folder(files, target)

    def drop_shorter_runs(self, source: int, epochs: int | None = None) -> None:
        """Remove what is left in a trial's folder of its shorter run of so many epochs, or of all its shorter runs."""
        files = self.files_of(source)
        for shorter in files.shorter_runs() if epochs is None else (files.shorter_run(epochs),):
            shutil.rmtree(shorter.path, ignore_errors=True)

    def drop_trial(self, number: int) -> None:
        """Remove all files of a trial that has the outcome of another."""
        shutil.rmtree(self.trial(number), ignore_errors=True)

    def drop_checkpoint(self, number: int) -> None:
        """Remove the checkpoint of a trial that ended."""
        shutil.rmtree(self.files_of(number).checkpoint, ignore_errors=True)

    def drop_adapter(self, number: int) -> None:
        """Remove the adapter of a trial that can no longer be chosen."""
        shutil.rmtree(self.files_of(number).adapter, ignore_errors=True)


def unused_name(study_name: str, runs: Path = RUNS) -> str:
    """`study_name`, or `study_name-2`, `-3`, ... : the first that has no run folder."""
    if not (runs / study_name).exists():
        return study_name
    number = 2
    while (runs / f"{study_name}-{number}").exists():
        number += 1
    return f"{study_name}-{number}"
