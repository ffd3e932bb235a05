"""The executor for one device: trains in this process."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from lora_lab.common.activity import Interrupted, unwatched
from lora_lab.common.errors import CheckpointError, InputError, TrainingError
from lora_lab.runner.checkpoint_clock import CheckpointClock
from lora_lab.runner.executor import Backend, Prepared
from lora_lab.runner.pack_size import PackSize
from lora_lab.study.engines import EngineChoice, engine_for
from lora_lab.study.events import ENDINGS, Failed, OutOfMemory, Started
from lora_lab.tracking.records import DatasetInput
from lora_lab.training.base.contents import base_contents
from lora_lab.training.base.loading import architecture, classes_of, default_device, device_name, load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.device import device_bytes, memory_may_run_out
from lora_lab.training.memory.room import DEFAULT_LIMIT, MemoryLimit, Need, Room
from lora_lab.training.memory.trial_memory import does_not_fit
from lora_lab.training.packed.linear import UnpackableError
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from lora_lab.common.activity import Beat
    from lora_lab.results.folder import RunFolder
    from lora_lab.runner.executor import Work
    from lora_lab.runner.options import RunOptions
    from lora_lab.study.events import TrialEvent
    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.training.base.loading import Base
    from lora_lab.training.datasets import TokenizedSplits
    from lora_lab.training.engine import Engine

T = TypeVar("T")
SPEED_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class Workbench:
    """A base in memory, and what trains on it."""

    settings: ModelSettings
    base: Base
    contents: Mapping[str, str]
    """The digests of the weights and the tokenizer."""
    catalog: DataCatalog
    packed: PackedEngine | None
    """None where nothing on this base is packed (`task_type: SEQ_CLS`)."""
    reference: ReferenceEngine

    @property
    def engines(self) -> tuple[Engine, ...]:
        """Both engines, of which one trains at a time."""
        return (self.reference,) if self.packed is None else (self.packed, self.reference)

    @property
    def pack(self) -> tuple[int, ...]:
        """The numbers of the trials that train side by side."""
        return () if self.packed is None else self.packed.active


def load_workbench(model: ModelSettings, trials_folder: Path, data_cache: Path, beat: Beat = unwatched) -> Workbench:
    """Load a base on this machine's device, with a catalog of tokenized data and both engines.

    Raises:
        InputError: there is no such base, it does not fit into memory, or it cannot be trained as the settings say.
    """
    with memory_may_run_out() as shortage:
        base = load_base(model, default_device())
        contents = base_contents(base, model)
        catalog = DataCatalog(base.tokenizer, data_cache, base.linears.limits.vocabulary, beat, classes_of(model))
        reference = ReferenceEngine(base, catalog, trials_folder, beat)  # before adapters are attached
        packed = None if model.classifies else PackedEngine(base, catalog, trials_folder, beat)
        return Workbench(model, base, contents, catalog, packed, reference)
    raise InputError(
        f"model.model_name_or_path: {model.model_name_or_path} does not fit into memory ({shortage.reason}); quantize "
        "it (model.quantization: nf4), spread it over devices (model.device_map: auto), or use a smaller base"
    )


class DeviceMemory:
    """What trials need of the device's memory, and whether they fit beside each other.

    Where a model is spread over several devices, that shows only when it is tried.

    Args:
        limit_bytes: What the base and the trials in training may take; None for no limit.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.room = Room(limit_bytes)
        self._needs: dict[TrialConfig, Need | None] = {}

    def fits(self, config: TrialConfig, engine: PackedEngine) -> bool:
        """Whether there is memory for one more trial in the pack."""
        if self.room.pack_limit_bytes is None or config.model.device_map is not None:
            return True
        self.room.keep(engine.active)
        return self.room.fits(self.need(config, engine))

    def need(self, config: TrialConfig, engine: PackedEngine) -> Need | None:
        """What a trial is predicted to need in the pack."""
        if config not in self._needs:
            predicted = engine.predict(config)
            self._needs[config] = None if predicted is None else Need.of(predicted, config.data.max_length)
        return self._needs[config]

    def take(self, work: Work, engine: PackedEngine) -> None:
        """A trial is in the pack from now on."""
        self.room.take(work.number, self.need(work.config, engine))

    def ran_out(self, staying: Iterable[int]) -> None:
        """The device had less than was thought: from now on, no more than what these trials take."""
        self.room.keep(staying)
        self.room.ran_out()

    def too_large(self, work: Work, engine: Engine) -> OutOfMemory | None:
        """The ending of a trial that was measured, when it was admitted, to need more memory than there is."""
        memory = engine.memory(work.number)
        limit = self.room.limit_bytes if work.config.model.device_map is None else None
        if limit is None or memory is None or memory.peak_bytes <= limit:
            return None
        measured = f"it needs {memory.peak_bytes:,} bytes as measured on one step"
        reason = does_not_fit(memory.predicted, limit, measured)
        return OutOfMemory(number=work.number, step=0, epoch=0.0, reason=reason)


class InProcessExecutor:
    """One device, one base at a time, on it one pack or one trial of the reference engine, in this process.

    A trial that was started is in one of four places. It trains in an engine. It was set aside by a pack that did not
    fit into memory, and comes back first (`_set_aside`). It waits for the end of the pack, because the packed engine
    refused its base (`_alone`). Or it is over, and that is told at the next `wait` (`_told`).

    Args:
        trials_folder: A folder for each trial's files is made in it.
        data_cache: Generated and converted datasets.
        pack_size: How many trials train at once; None finds it by measuring.
        memory: What the base and a pack may take together.
        checkpoint_interval_s: About this much work of a trial is repeated after a kill, at most.
        beat: Called before each part of work that is longer than a step.
    """

    def __init__(
        self,
        trials_folder: Path,
        data_cache: Path,
        pack_size: int | None,
        memory: MemoryLimit = DEFAULT_LIMIT,
        checkpoint_interval_s: float = 30.0,
        *,
        beat: Beat = unwatched,
    ) -> None:
        self._trials_folder, self._data_cache = trials_folder, data_cache
        self._pack_size = PackSize(pack_size)
        self._checkpoints, self._beat = CheckpointClock(checkpoint_interval_s), beat
        free = device_bytes(default_device())
        self._memory = DeviceMemory(memory.bytes_of(None if free is None else free[0]))
        self._bench: Workbench | None = None
        self._work: dict[int, Work] = {}
        """All active trials."""
        self._set_aside: deque[int] = deque()
        self._alone: deque[int] = deque()
        self._told: list[TrialEvent] = []
        self._tokens_per_second = 0.0

    def prepare(self, example: TrialConfig) -> Prepared:
        """Load the base and the data of a configuration."""
        bench = self._bench_for(example.model)
        splits = bench.catalog.splits(example.data)
        contents = {**bench.contents, **splits.contents}
        return Prepared(device_name(), splits.notes, tuple(_inputs(splits)), contents)

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and forgetting loss of the bare base on the configuration's data, in nats per token.

        Raises:
            InputError: the device has no room for that.
        """
        return self._of_bare_base(config, lambda engine: engine.base_losses(config))

    def base_scores(self, config: TrialConfig) -> dict[str, float]:
        """The bare base's metrics, those that the configuration asks for.

        Raises:
            InputError: the held-out rows have no answers, the base cannot give them, or there is no room for that.
        """
        return self._of_bare_base(config, lambda engine: engine.base_scores(config))

    def _of_bare_base(self, config: TrialConfig, measure: Callable[[Engine], T]) -> T:
        bench = self._bench_for(config.model)
        with memory_may_run_out() as shortage:
            return measure(bench.engines[0])
        raise InputError(
            f"an evaluation of the bare base does not fit into memory ({shortage.reason}); lower "
            "training.per_device_eval_batch_size or data.max_length, or quantize the base (model.quantization: nf4)"
        )

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in training, of those that wait, and of those whose ending was not told yet."""
        training = () if self._bench is None else (one for engine in self._bench.engines for one in engine.active)
        told = (event.number for event in self._told)
        return tuple(dict.fromkeys((*training, *self._set_aside, *self._alone, *told)))

    @property
    def has_room(self) -> bool:
        """Whether there is a pack, or none yet, and it is not full."""
        if self._alone or self._set_aside or (self._bench is not None and self._bench.reference.active):
            return False
        return len(self.active) < self._pack_size.limit

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second of the whole pack, recently."""
        return self._tokens_per_second

    @property
    def steps(self) -> Mapping[int, tuple[int, int]]:
        """Optimizer steps that are done, and all that there are, of each trial in training."""
        engines = () if self._bench is None else self._bench.engines
        on_the_way = {number: engine.trial(number).progress for engine in engines for number in engine.active}
        return {number: (progress.step, progress.plan.total_steps) for number, progress in on_the_way.items()}

    def accepts(self, config: TrialConfig) -> bool:
        """Whether the pack has room, and is on this configuration's base or can change to it.

        A pack has one forward pass, so its trials keep its activations or compute them again together. A trial of
        the reference engine trains alone.
        """
        bench = self._bench
        if bench is None or not self.active:
            return True
        if engine_for(config).name == "reference" or bench.packed is None:
            return False
        neighbor = self._work[self.active[0]].config
        alike = neighbor.training.gradient_checkpointing == config.training.gradient_checkpointing
        return self.has_room and config.model == neighbor.model and alike and self._memory.fits(config, bench.packed)

    def start(self, work: Work) -> None:
        """Put a trial into the pack, or on the reference engine; loads its base first where another one is loaded."""
        choice = engine_for(work.config)
        ending: OutOfMemory | Failed | None = None
        self._work[work.number] = work
        try:
            bench = self._bench_for(work.config.model)
            if choice.name == "packed" and bench.packed is not None:
                try:
                    ending = self._admit(bench, work, bench.packed)
                except UnpackableError as error:
                    choice = EngineChoice("reference", str(error))
            if choice.name == "reference":
                if bench.pack:
                    self._alone.append(work.number)
                else:
                    ending = self._admit(bench, work, bench.reference)
        except (InputError, CheckpointError, TrainingError) as error:
            ending = _failed(work, error)
        self._told.append(Started(number=work.number, step=0, epoch=0.0, engine=choice.name, reason=choice.reason))
        self._told += [] if ending is None else [ending]

    def stop(self, number: int) -> None:
        """Take a trial out of training, or out of those that wait."""
        for waiting in (self._set_aside, self._alone):
            if number in waiting:
                waiting.remove(number)
        self._told = [event for event in self._told if event.number != number]
        for engine in () if self._bench is None else self._bench.engines:
            engine.discard(number)
        self._work.pop(number, None)

    def wait(self, timeout_s: float) -> list[TrialEvent]:
        """What happened at the start of trials; else one step of the pack, or of the trial on the reference engine.

        A step that did not fit into memory is tried again with fewer trials.
        """
        events, self._told = self._told, []
        if not events and timeout_s > 0 and self._bench is not None and self.active:
            self._checkpoints.run(self._save_checkpoints)
            events = self._step(self._bench)
        for event in events:
            if isinstance(event, ENDINGS):
                self._work.pop(event.number, None)
        return events

    def close(self, *, save: bool) -> None:
        """Write checkpoints of the trials in training, if wanted, and free the base."""
        if save:
            self._save_checkpoints()
        self._bench = None
        self._work.clear()
        self._set_aside.clear()
        self._alone.clear()
        self._told.clear()

    def _bench_for(self, model: ModelSettings) -> Workbench:
        if self._bench is None or model != self._bench.settings:
            assert not self.active, "a pack has one base"
            self._bench = None  # frees the old base before the new one is loaded
            self._bench = load_workbench(model, self._trials_folder, self._data_cache, self._beat)
        return self._bench

    def _save_checkpoints(self) -> None:
        for engine in () if self._bench is None else self._bench.engines:
            engine.save_checkpoints()

    # Training

    def _step(self, bench: Workbench) -> list[TrialEvent]:
        if self._alone and not self._set_aside and not any(engine.active for engine in bench.engines):
            return self._take_alone(bench)
        packed = None if bench.reference.active else bench.packed
        if packed is not None:
            self._refill(bench, packed)
        engine = packed or bench.reference
        training = len(engine.active)
        events = engine.step()
        if packed is not None:
            self._take_set_aside(packed)
            self._pack_size.measured(training, engine.tokens_per_second)
        self._tokens_per_second += SPEED_SMOOTHING * (engine.tokens_per_second - self._tokens_per_second)
        return events

    def _take_alone(self, bench: Workbench) -> list[TrialEvent]:
        """Let the reference engine take up the next trial that waited for the end of the pack."""
        work = self._work[self._alone.popleft()]
        try:
            ending = self._admit(bench, work, bench.reference)
        except (InputError, CheckpointError, TrainingError) as error:
            return [_failed(work, error)]
        return [] if ending is None else [ending]

    def _refill(self, bench: Workbench, packed: PackedEngine) -> None:
        """Put trials that were set aside back into the pack, as far as there is room."""
        while self._set_aside and len(packed.active) < self._pack_size.limit:
            work = self._work[self._set_aside[0]]
            if packed.active and not self._memory.fits(work.config, packed):
                return
            self._set_aside.popleft()
            ending = self._admit(bench, work, packed)
            self._told += [] if ending is None else [ending]

    def _admit(self, bench: Workbench, work: Work, engine: Engine) -> OutOfMemory | None:
        """Put a trial into an engine; its ending where it needs more memory than there is.

        Where that is `Interrupted`, the trial waits to be put in again.
        """
        try:
            ending = engine.admit(work.number, work.config, work.shorter)
        except Interrupted:
            (self._set_aside if engine is bench.packed else self._alone).appendleft(work.number)
            return None
        if work.number in engine.active:
            ending = self._memory.too_large(work, engine)
            if ending is not None:
                engine.discard(work.number)
            elif engine is bench.packed:
                self._memory.take(work, bench.packed)
        if bench.packed is not None:
            self._take_set_aside(bench.packed)
        return ending

    def _take_set_aside(self, engine: PackedEngine) -> None:
        """Keep the trials that had to leave the pack, and do not fill it so far again."""
        if engine.set_aside:
            self._memory.ran_out(engine.active)
        for number in engine.set_aside:
            self._set_aside.append(number)
            self._pack_size.shrink(len(engine.active))
        engine.set_aside.clear()


def in_process(spec: StudySpec, folder: RunFolder, options: RunOptions, beat: Beat = unwatched) -> Backend:
    """Train a study in this process, on this machine's device."""
    executor = InProcessExecutor(
        folder.trials,
        folder.data_cache,
        spec.sweep.fixed_pack_size,
        options.memory_limit,
        options.checkpoint_interval_s,
        beat=beat,
    )
    return Backend(executor, cache(architecture))


def _failed(work: Work, error: Exception) -> Failed:
    return Failed(number=work.number, step=0, epoch=0.0, reason=str(error))


def _inputs(splits: TokenizedSplits) -> Iterator[DatasetInput]:
    for purpose, source in splits.sources.items():
        yield DatasetInput(name=source.name, digest=source.digest, source=source.name, context=purpose)
