"""What a running study tells the terminal: these messages and the events of trials, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

from lora_lab.study.events import TrialEvent
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.common.activity import Activity
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialState
    from lora_lab.study.settings import TrialConfig


@dataclass(frozen=True, slots=True)
class StudyBegan:
    """A session of the study begins; it comes before all other messages but notes."""

    study_name: str
    total_trials: int
    pack_size: int | None
    """How many trials train at once; None where that is found by measuring."""
    done: int = 0
    """Trials that earlier sessions finished."""
    measure: Measure = EVAL_LOSS
    """What the study judges."""


@dataclass(frozen=True, slots=True)
class TrialBegan:
    """A trial trains from now on."""

    number: int
    config: TrialConfig
    label: str
    """The configuration in a few words."""
    is_retraining: bool = False
    """Whether it repeats a finalist with a fresh seed, and so is no trial of the search."""


@dataclass(frozen=True, slots=True)
class RetrainingsPlanned:
    """So many more trials train the finalists again with fresh seeds."""

    numbers: tuple[int, ...]
    """The finalists."""
    count: int


@dataclass(frozen=True, slots=True)
class TrialOver:
    """A trial needs no more work: it trained to an end, or was told what another one trained."""

    number: int
    state: TrialState
    value: float | None = None
    """Of what the study judges."""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """About once a second while trials train: their speed, how far each is, and the state of the tracker."""

    tokens_per_second: float
    """Of all trials together."""
    tracking: str = ""
    """In words."""
    steps: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Optimizer steps that are done, and all that there are, by trial."""


@dataclass(frozen=True, slots=True)
class Working:
    """What is being done from now on, told a few times a second at most."""

    activity: Activity


SessionState = Literal["running", "stopping", "ended"]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """About once a second, whatever is being done and however long that takes: the process lives."""

    state: SessionState = "running"


@dataclass(frozen=True, slots=True)
class Note:
    """Something that the user should read."""

    text: str


@dataclass(frozen=True, slots=True)
class SessionOver:
    """The session trains no more; but for the notes of what fails after it, this comes last."""

    verdict_follows: bool = False
    """Whether a verdict on the study is printed next: the best of it is then the verdict's to name."""


Message: TypeAlias = (
    StudyBegan
    | TrialBegan
    | RetrainingsPlanned
    | TrialOver
    | Tick
    | Working
    | Heartbeat
    | Note
    | SessionOver
    | TrialEvent
)
