"""What a training engine tells about its trials: a stream of these values, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_lab.study.measures import MEASURES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.study.engines import EngineName


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEvent:
    """Something that happened to one trial; `step` counts its finished optimizer steps."""

    number: int
    step: int
    epoch: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(TrialEvent):
    """The trial has a place on a device; `step` is 0, also where it goes on from a checkpoint."""

    engine: EngineName
    reason: str
    """Why this engine trains it, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged(TrialEvent):
    """One optimizer step: mean loss per label token (nats), gradient norm before clipping, learning rate."""

    loss: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(TrialEvent):
    """An evaluation: token-mean negative log-likelihood (nats) on held-out and on general text."""

    evaluation: int
    """Its number from 1: the epoch, unless `eval_steps` is set."""

    eval_loss: float
    forgetting_loss: float | None = None
    """On `data.forgetting`; None where there is none, or where it is measured only at the end."""
    costs: Mapping[str, float] = field(default_factory=dict, compare=False)
    """Other objectives known now, by their MLflow names: scores as they are, costs as they will be at the end."""

    failures: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Why metrics of one's own are not known, by name: what their function raised or returned, and on which row."""

    @property
    def scores(self) -> dict[str, float]:
        """What this evaluation measured beside the losses."""
        return {name: value for name, value in self.costs.items() if MEASURES[name].curve}


@dataclass(frozen=True, slots=True, kw_only=True)
class Milestone(TrialEvent):
    """A run of fewer epochs that this trial contains ends here, or parts from it here.

    It follows the `Evaluated` of the same step, where there is one. The shorter run's files lie where
    `TrialFolder.shorter_run` says: evaluations, and an adapter or a checkpoint to go on from.
    """

    epochs: int
    """How many epochs the shorter run has."""
    evaluation: int
    """The newest evaluation: how much of the curve is the shorter run's too."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The shorter run's final figures, as in `Finished`; empty where it parts from this trial."""
    reason: str = ""
    """Why the shorter run would have ended before its last step, and which adapter it leaves, as in `Finished`."""

    @property
    def is_branch(self) -> bool:
        """Whether the shorter run goes on by itself from here."""
        return not self.metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(TrialEvent):
    """The trial reached its last step, or stopped early, and its adapter lies in its folder."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Final figures by their MLflow names (eval_loss, trainable_params, peak_memory_bytes, ...)."""
    reason: str = ""
    """Why it stopped early, and which adapter it leaves, if not its last one; in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diverged(TrialEvent):
    """A loss or gradient of this trial is not finite."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory(TrialEvent):
    """The trial does not fit on the device, even alone."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(TrialEvent):
    """The trial raised an error that is its own."""

    reason: str


ENDINGS = (Finished, Diverged, OutOfMemory, Failed)
"""The events after which a trial is over."""
