"""What the journal of a study holds: the engine's trial events, and the records defined here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from lora_lab.study.events import Diverged, Evaluated, Failed, Finished, Logged, OutOfMemory, TrialEvent
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_lab.study.data_settings import Purpose
    from lora_lab.study.results import TrialState
    from lora_lab.study.sweep import Value

StudyState = Literal["complete", "interrupted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetInput:
    """A dataset that the study reads; `digest` is a hash of its content, `source` a path or Hub id."""

    name: str
    digest: str
    source: str
    context: Purpose = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStarted:
    """The coordinator begins, or goes on with, the study."""

    question: str = ""
    params: Mapping[str, Value] = field(default_factory=dict)
    """Facts that never change (MLflow keeps the first value); what a resume may widen belongs into `tags`."""
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[DatasetInput, ...] = ()
    judged: str = EVAL_LOSS.name
    """The measure that the study judges."""
    searched: tuple[str, ...] = ()
    """The settings that it searches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyEnded:
    """The coordinator is done, or was asked to stop."""

    state: StudyState
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialStarted:
    """A trial begins, or goes on after a stop."""

    number: int
    name: str
    params: Mapping[str, Value] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnded:
    """A trial is over; `state` is any but `running`."""

    number: int
    state: TrialState
    step: int = 0
    """Finished optimizer steps: where the final metrics stand on the step axis."""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    adapter_folder: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A file or folder belongs to a trial, or to the study where `number` is None."""

    number: int | None
    path: Path
    artifact_path: str | None = None
    """Folder to put it in among the run's artifacts, by default their root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured of a trial after its training, or of the bare base where `number` is None."""

    number: int | None
    metrics: Mapping[str, float]


Record = TrialEvent | StudyStarted | StudyEnded | TrialStarted | TrialEnded | Attached | Measured

KINDS: Mapping[str, type[Record]] = {
    kind.__name__: kind
    for kind in (
        *(Logged, Evaluated, Finished, Diverged, OutOfMemory, Failed),
        *(StudyStarted, StudyEnded, TrialStarted, TrialEnded, Attached, Measured),
    )
}
"""Name of a record in the journal -> its class."""
