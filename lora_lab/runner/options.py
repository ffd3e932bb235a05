"""How a study is run on this machine: what the command line says beside the study itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_lab.training.memory.room import MemoryLimit


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Choices for one call of `sweep`, read once from its words; they are no part of the study."""

    memory_limit: MemoryLimit
    tracking_uri: str
    """The MLflow store, resolved: it means the same from every working directory."""
    checkpoint_interval_s: float = 30.0
    """About this much work of a trial is repeated after a kill, at most."""
    max_hours: float | None = None
    """End within this time, with a verdict on what there is by then; None for no limit."""
    storage_patience_s: float | None = None
    """How long an outage of the storage is waited out; None for its default."""
    quiet: bool = False
    """Print only the verdict and errors."""
    json: bool = False
    """Print one JSON object per line, for programs."""
