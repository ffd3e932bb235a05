"""The executor for one device: trains in this process."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from lora_lab.common.errors import CheckpointError, InputError, TrainingError
from lora_lab.runner.executor import Prepared
from lora_lab.runner.pack_size import PackSize
from lora_lab.study.engines import EngineChoice, engine_for
from lora_lab.study.events import Failed, OutOfMemory
from lora_lab.tracking.records import DatasetInput
from lora_lab.training.base.contents import base_contents
from lora_lab.training.base.loading import architecture, default_device, device_name, load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.device import device_bytes
from lora_lab.training.memory.probe import does_not_fit
from lora_lab.training.memory.room import Need, Room, memory_limit
from lora_lab.training.packed.linear import UnpackableError
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from lora_lab.study.events import TrialEvent
    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.targets import LinearMap
    from lora_lab.training.datasets import TokenizedSplits


SPEED_SMOOTHING = 0.1


class InProcessExecutor:
    """One device, one base at a time, on it one pack or one trial of the reference engine, in this process."""

    def __init__(self, trials_folder: Path, data_cache: Path, pack_size: int | None, memory: str | None = None) -> None:
        self._trials_folder = trials_folder
        self._data_cache = data_cache
        self._pack_size = PackSize(pack_size)
        free = device_bytes(default_device())
        self._room = Room(memory_limit(memory, None if free is None else free[0]))
        self._needs: dict[TrialConfig, Need | None] = {}
        self._refused: list[OutOfMemory] = []
        """Trials that need more than there is, which is told at the next poll."""
        self._set_aside: dict[int, TrialConfig] = {}
        """Trials that left a pack which did not fit into memory; they come back first."""
        self._configs: dict[int, TrialConfig] = {}
        self._shorter: dict[int, Sequence[TrialConfig]] = {}
        """Runs of fewer epochs inside each trial whose results are wanted too."""
        self._unpackable: dict[int, str] = {}
        """Why the packed engine refused the base of a trial, which the reference engine then trains."""
        self._alone: deque[int] = deque()
        """Those of them that wait for the end of the pack."""
        self._tokens_per_second = 0.0
        self._settings: ModelSettings | None = None
        self._engine: PackedEngine | None = None
        self._reference: ReferenceEngine | None = None
        self._catalog: DataCatalog | None = None
        self._base_contents: dict[str, str] = {}
        self._linears: dict[ModelSettings, LinearMap] = {}

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in training, and of those that wait to come back into the pack."""
        training = (number for engine in self._engines for number in engine.active)
        return (*training, *self._set_aside, *self._alone, *(event.number for event in self._refused))

    @property
    def _engines(self) -> tuple[PackedEngine | ReferenceEngine, ...]:
        return tuple(engine for engine in (self._engine, self._reference) if engine is not None)

    @property
    def has_room(self) -> bool:
        """Whether there is a pack, or none yet, and it is not full."""
        if self._alone or (self._reference is not None and self._reference.active):
            return False
        return not self._set_aside and len(self.active) < self._pack_size.limit

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second of the whole pack, recently."""
        return self._tokens_per_second

    def accepts(self, config: TrialConfig) -> bool:
        """Whether the pack has room, and is on this trial's base or can change to it.

        A pack has one forward pass, so its trials keep its activations or compute them again together. A trial of
        the reference engine trains alone.
        """
        if not self.active:
            return True
        if engine_for(config).name == "reference":
            return False
        neighbor = self._configs[self.active[0]].training
        alike = neighbor.gradient_checkpointing == config.training.gradient_checkpointing
        return self.has_room and config.model == self._settings and alike and self._fits(config)

    def _fits(self, config: TrialConfig) -> bool:
        """Whether there is memory for one more trial in the pack; with several devices, that shows when it is tried."""
        if self._room.pack_limit_bytes is None or config.model.device_map is not None:
            return True
        self._room.keep(self.active)
        return self._room.fits(self._need(config))

    def _need(self, config: TrialConfig) -> Need | None:
        if config not in self._needs:
            predicted = self._engine_for(config.model).predict(config)
            self._needs[config] = None if predicted is None else Need.of(predicted, config.data.max_length)
        return self._needs[config]

    def submit(self, number: int, config: TrialConfig, shorter: Sequence[TrialConfig] = ()) -> None:
        """Put a trial into the pack, or on the reference engine; loads its base first where another one is loaded.

        Raises:
            InputError: the trial cannot be trained as it is.
            CheckpointError: its checkpoint is damaged.
        """
        engine = self._engine_for(config.model)
        self._configs[number], self._shorter[number] = config, shorter
        if engine_for(config).name == "reference":
            self._admit_alone(number)
            return
        try:
            self._admit(engine, number, config)
        except UnpackableError as error:
            self._unpackable[number] = str(error)
            if engine.active:
                self._alone.append(number)
            else:
                self._admit_alone(number)

    def engine_of(self, number: int, config: TrialConfig) -> EngineChoice:
        """What trains a trial that was submitted, and why."""
        if number in self._unpackable:
            return EngineChoice("reference", self._unpackable[number])
        return engine_for(config)

    def _admit_alone(self, number: int) -> None:
        """Put a trial on the reference engine, unless it was measured to need more memory than there is."""
        assert self._reference is not None
        self._reference.admit(number, self._configs[number], self._shorter[number])
        self._check_measured(self._reference, number)

    def _admit(self, engine: PackedEngine, number: int, config: TrialConfig) -> None:
        """Put a trial into the pack, unless it was measured to need more than there is."""
        engine.admit(number, config, self._shorter[number])
        if number in engine.active:
            self._room.take(number, self._need(config))
            self._check_measured(engine, number)
        self._take_set_aside(engine)

    def _check_measured(self, engine: PackedEngine | ReferenceEngine, number: int) -> None:
        """Give up a trial that was measured to need more memory than there is."""
        memory = engine.memory(number)
        limit = self._room.limit_bytes if self._configs[number].model.device_map is None else None
        if limit is not None and memory is not None and memory.peak_bytes > limit:
            engine.discard(number)
            detail = f"it needs {memory.peak_bytes:,} bytes as measured on one step"
            reason = does_not_fit(memory.predicted, limit, detail)
            self._refused.append(OutOfMemory(number=number, step=0, epoch=0.0, reason=reason))

    def stop(self, number: int) -> None:
        """Take a trial out of training."""
        self._set_aside.pop(number, None)
        self._refused = [event for event in self._refused if event.number != number]
        if number in self._alone:
            self._alone.remove(number)
        for engine in self._engines:
            engine.discard(number)

    def poll(self) -> list[TrialEvent]:
        """One step of the pack, or of the trial on the reference engine.

        A step that did not fit into memory is tried again with fewer trials.
        """
        if self._refused:
            refused, self._refused = self._refused, []
            return list(refused)
        if self._reference is not None and self._reference.active:
            events = self._reference.step()
            self._note_speed(self._reference.tokens_per_second)
            return events
        engine = self._engine
        assert engine is not None
        if self._alone and not engine.active and not self._set_aside:
            return self._take_alone()
        while self._set_aside and len(engine.active) < self._pack_size.limit:
            number, config = next(iter(self._set_aside.items()))
            if engine.active and not self._fits(config):
                break
            del self._set_aside[number]
            self._admit(engine, number, config)
        training = len(engine.active)
        events = engine.step()
        self._take_set_aside(engine)
        self._pack_size.measured(training, engine.tokens_per_second)
        self._note_speed(engine.tokens_per_second)
        return events

    def _take_alone(self) -> list[TrialEvent]:
        """Let the reference engine take up the next trial that waited for the end of the pack."""
        number = self._alone.popleft()
        try:
            self._admit_alone(number)
        except (InputError, CheckpointError, TrainingError) as error:
            return [Failed(number=number, step=0, epoch=0.0, reason=str(error))]
        return []

    def _note_speed(self, tokens_per_second: float) -> None:
        self._tokens_per_second += SPEED_SMOOTHING * (tokens_per_second - self._tokens_per_second)

    def _take_set_aside(self, engine: PackedEngine) -> None:
        """Keep the trials that had to leave the pack, and do not fill it so far again."""
        if engine.set_aside:
            self._room.keep(engine.active)
            self._room.ran_out()
        for number in engine.set_aside:
            self._set_aside[number] = self._configs[number]
            self._pack_size.shrink(len(engine.active))
        engine.set_aside.clear()

    def save_checkpoints(self) -> None:
        """Write a checkpoint of every active trial."""
        for engine in self._engines:
            engine.save_checkpoints()

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
        contents = {**self._base_contents, **splits.contents}
        return Prepared(device_name(), splits.notes, tuple(_inputs(splits)), contents)

    def _engine_for(self, model: ModelSettings) -> PackedEngine:
        if self._engine is None or model != self._settings:
            assert not self.active, "a pack has one base"
            self._engine = self._reference = None  # frees the old base before the new one is loaded
            base = load_base(model, default_device())
            self._base_contents = base_contents(base, model)
            self._catalog = DataCatalog(base.tokenizer, self._data_cache)
            self._reference = ReferenceEngine(base, self._catalog, self._trials_folder)  # before adapters are attached
            self._engine = PackedEngine(base, self._catalog, self._trials_folder)
            self._settings = model
        return self._engine


def _inputs(splits: TokenizedSplits) -> Iterator[DatasetInput]:
    for purpose, source in splits.sources.items():
        yield DatasetInput(name=source.name, digest=source.digest, source=source.name, context=purpose)
