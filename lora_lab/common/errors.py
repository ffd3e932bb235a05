"""The error tree: a command prints the message of a `LoraLabError` and exits with its `exit_code`.

::

    LoraLabError                exit 1   something went wrong that the user can act on
    ├── InputError              exit 2   a file, key, value or argument that cannot be right
    │   └── StudyFileError      exit 2   the same, with file, line and key path
    ├── StudyLockedError        exit 1   another coordinator works on this study
    ├── StorageError            exit 1   the run folder or the database cannot be read or written
    │   └── StorageAwayError    exit 1   the user stopped the wait for a database that is away
    ├── CheckpointError         exit 1   a checkpoint or adapter on disk is damaged or not what it says
    └── TrainingError           exit 1   a trial cannot go on (told to the search as `failed`), or no trial finished
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from pathlib import Path


class LoraLabError(Exception):
    """Base of all errors that are shown to the user without a traceback."""

    exit_code: ClassVar[int] = 1


class InputError(LoraLabError):
    """Input that cannot be right: states the rule, the actual value, and what to do."""

    exit_code: ClassVar[int] = 2


class StudyFileError(InputError):
    """A mistake in a study or sweep file, or in a `--set` argument, at a known place."""

    def __init__(self, source: Path | str, line: int | None, key_path: str, problem: str) -> None:
        """Compose `file:line: key.path: problem`; `line` counts from 1, None where there is no line."""
        place = f"{source}:{line}" if line is not None else str(source)
        super().__init__(f"{place}: {key_path}: {problem}" if key_path else f"{place}: {problem}")
        self.source, self.line, self.key_path, self.problem = source, line, key_path, problem


class StudyLockedError(LoraLabError):
    """Another coordinator holds the lease of this study."""


class StorageError(LoraLabError):
    """The run folder or the database cannot be read or written."""


class StorageAwayError(StorageError):
    """The database is away, and the user asked to stop while it was waited for."""


class CheckpointError(LoraLabError):
    """A checkpoint or adapter on disk is damaged, or is not what its manifest says."""


class TrainingError(LoraLabError):
    """A trial that cannot go on, while its neighbors can; or a study none of whose trials finished."""
