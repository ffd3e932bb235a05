"""Who trains: the interface that the coordinator sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.study.engines import EngineChoice
    from lora_lab.study.events import TrialEvent
    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.targets import LinearMap
    from lora_lab.tracking.records import DatasetInput


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known once base and data are loaded."""

    device: str
    """In words, for the report."""
    notes: tuple[str, ...]
    """What the user should know of the data: rows cut, duplicates, ..."""
    datasets: tuple[DatasetInput, ...]
    contents: Mapping[str, str]
    """The digest of everything that trials are trained and measured on, by what it is: data, weights, tokenizer."""


class Executor(Protocol):
    """Trains trials and says what happened; knows nothing of the search."""

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in training."""

    @property
    def has_room(self) -> bool:
        """Whether one more trial could train now."""

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second of all trials together, recently."""

    def accepts(self, config: TrialConfig) -> bool:
        """Whether this very trial can start now."""

    def engine_of(self, number: int, config: TrialConfig) -> EngineChoice:
        """What trains a trial that was submitted, and why."""

    def submit(self, number: int, config: TrialConfig, shorter: Sequence[TrialConfig] = ()) -> None:
        """Start or continue a trial; `shorter` are runs of fewer epochs in it whose results are wanted too."""

    def stop(self, number: int) -> None:
        """End a trial early."""

    def poll(self) -> list[TrialEvent]:
        """Train on until something happened."""

    def save_checkpoints(self) -> None:
        """Make the work so far survive a kill."""

    def linears(self, model: ModelSettings) -> LinearMap:
        """The linear modules of a base, from its config."""

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and forgetting loss of the bare base on the trial's data."""

    def prepare(self, config: TrialConfig) -> Prepared:
        """Load base and data before the first trial."""
