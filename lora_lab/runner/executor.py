"""Who trains: the interface that the coordinator sees, and the executor for one device in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from lora_lab.runner.pack_size import PackSize
from lora_lab.tracking.records import DatasetInput
from lora_lab.training.base import architecture, default_device, device_name, load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.engine import PackedEngine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lora_lab.study.events import TrialEvent
    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.targets import LinearMap
    from lora_lab.training.datasets import TokenizedSplits

SPEED_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known once base and data are loaded."""

    device: str
    """In words, for the report."""
    notes: tuple[str, ...]
    """What the user should know of the data: rows cut, duplicates, ..."""
    datasets: tuple[DatasetInput, ...]


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

    def submit(self, number: int, config: TrialConfig) -> None:
        """Start or continue a trial."""

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


class InProcessExecutor:
    """One device, one pack, one base at a time, in this process."""

    def __init__(self, trials_folder: Path, data_cache: Path, pack_size: int | None) -> None:
        self._trials_folder = trials_folder
        self._data_cache = data_cache
        self._pack_size = PackSize(pack_size)
        self._set_aside: dict[int, TrialConfig] = {}
        """Trials that left a pack which did not fit into memory; they come back first."""
        self._configs: dict[int, TrialConfig] = {}
        self._tokens_per_second = 0.0
        self._settings: ModelSettings | None = None
        self._engine: PackedEngine | None = None
        self._catalog: DataCatalog | None = None
        self._linears: dict[ModelSettings, LinearMap] = {}

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in the pack, and of those that wait to come back into it."""
        return (*(self._engine.active if self._engine else ()), *self._set_aside)

    @property
    def has_room(self) -> bool:
        """Whether the pack is not full."""
        return not self._set_aside and len(self.active) < self._pack_size.limit

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second of the whole pack, recently."""
        return self._tokens_per_second

    def accepts(self, config: TrialConfig) -> bool:
        """Whether the pack has room, and is on this trial's base or can change to it."""
        return not self.active or (self.has_room and config.model == self._settings)

    def submit(self, number: int, config: TrialConfig) -> None:
        """Put a trial into the pack; loads its base first where another one is loaded.

        Raises:
            InputError: the trial cannot be trained as it is.
            CheckpointError: its checkpoint is damaged.
        """
        engine = self._engine_for(config.model)
        self._configs[number] = config
        engine.admit(number, config)
        self._take_set_aside(engine)

    def stop(self, number: int) -> None:
        """Take a trial out of the pack."""
        self._set_aside.pop(number, None)
        if self._engine:
            self._engine.discard(number)

    def poll(self) -> list[TrialEvent]:
        """One step of the pack; one that did not fit into memory is tried again with fewer trials."""
        engine = self._engine
        assert engine is not None
        while self._set_aside and len(engine.active) < self._pack_size.limit:
            number = next(iter(self._set_aside))
            engine.admit(number, self._set_aside.pop(number))
        training = len(engine.active)
        events = engine.step()
        self._take_set_aside(engine)
        self._pack_size.measured(training, engine.tokens_per_second)
        self._tokens_per_second += SPEED_SMOOTHING * (engine.tokens_per_second - self._tokens_per_second)
        return events

    def _take_set_aside(self, engine: PackedEngine) -> None:
        """Keep the trials that had to leave the pack, and do not fill it so far again."""
        for number in engine.set_aside:
            self._set_aside[number] = self._configs[number]
            self._pack_size.shrink(len(engine.active))
        engine.set_aside.clear()

    def save_checkpoints(self) -> None:
        """Write a checkpoint of every active trial."""
        if self._engine:
            self._engine.save_checkpoints()

    def linears(self, model: ModelSettings) -> LinearMap:
        """The linear modules of a base, from its config; nothing is loaded."""
        if model not in self._linears:
            self._linears[model] = architecture(model)
        return self._linears[model]

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and forgetting loss of the bare base on the trial's data."""
        return self._engine_for(config.model).base_losses(config)

    def prepare(self, config: TrialConfig) -> Prepared:
        """Load the base and the data of a trial."""
        self._engine_for(config.model)
        assert self._catalog is not None
        splits = self._catalog.splits(config.data)
        return Prepared(device_name(), splits.notes, tuple(_inputs(splits)))

    def _engine_for(self, model: ModelSettings) -> PackedEngine:
        if self._engine is None or model != self._settings:
            assert not self.active, "a pack has one base"
            self._engine = None  # frees the old base before the new one is loaded
            base = load_base(model, default_device())
            self._catalog = DataCatalog(base.tokenizer, self._data_cache)
            self._engine = PackedEngine(base, self._catalog, self._trials_folder)
            self._settings = model
        return self._engine


def _inputs(splits: TokenizedSplits) -> Iterator[DatasetInput]:
    for context, source in splits.sources.items():
        yield DatasetInput(name=source.name, digest=source.digest, source=source.name, context=context)
