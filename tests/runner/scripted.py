"""A study whose trials are arithmetic: everything but the training is real, so that hundreds of runs take seconds."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
import sqlalchemy

from lora_lab.common.errors import InputError
from lora_lab.runner.coordinator import Coordinator
from lora_lab.runner.stopping import StopRequest
from lora_lab.search.pruners import build_pruner
from lora_lab.search.samplers import build_sampler
from lora_lab.search.store import StudyStore, open_store
from lora_lab.study.engines import EngineChoice, engine_for
from lora_lab.study.events import Diverged, Evaluated, Finished, Milestone
from lora_lab.study.spec import StudySpec
from lora_lab.study.targets import LinearMap, LinearShape
from lora_lab.study.trajectory import folder_of_shorter_run
from lora_lab.terminal.display import PlainDisplay
from lora_lab.tracking.journal import Journal, read
from lora_lab.tracking.records import TrialEnded

if TYPE_CHECKING:
    import io
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.results.folder import RunFolder
    from lora_lab.study.settings import TrialConfig

NAMES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
LINEARS = LinearMap(
    {f"model.layers.{layer}.{name}": LinearShape(8, 8) for layer in range(2) for name in NAMES}, None, 2, 1000
)
BASE_LOSS = 4.0
STEPS_PER_EPOCH = 4


def loss(config: TrialConfig, epoch: int) -> float:
    """What a trial measures: better with r and epochs, and a little different for every seed."""
    value = 3.0 - 0.01 * config.lora.r - 0.1 * epoch + 0.001 * config.training.seed + config.training.learning_rate
    return value - 0.05 * (decays(config) and epoch == config.training.num_train_epochs)


def decays(config: TrialConfig) -> bool:
    """Whether the last epoch is the decay."""
    return config.training.lr_scheduler_type == "warmup_stable_decay"


@dataclass
class ScriptedExecutor:
    """Trains by arithmetic, one epoch at a time; checkpoints and adapters are real folders."""

    folder: RunFolder
    pack_size: int = 2
    refused_rank: int | None = None
    diverging_rank: int | None = None
    trained_epochs: list[tuple[int, int]] = field(default_factory=list)
    running: dict[int, tuple[TrialConfig, int]] = field(default_factory=dict)
    shorter: dict[int, list[TrialConfig]] = field(default_factory=dict)
    tokens_per_second: float = 0.0
    on_poll: Callable[[], None] | None = None

    @property
    def active(self) -> tuple[int, ...]:
        return tuple(self.running)

    @property
    def has_room(self) -> bool:
        return len(self.running) < self.pack_size

    def accepts(self, config: TrialConfig) -> bool:
        return self.has_room

    def engine_of(self, number: int, config: TrialConfig) -> EngineChoice:
        return engine_for(config)

    def submit(self, number: int, config: TrialConfig, shorter=()) -> None:
        if config.lora.r == self.refused_rank:
            raise InputError(f"r={config.lora.r} is refused")
        saved = self.folder.trial(number) / "checkpoint" / "epoch"
        self.running[number] = (config, int(saved.read_text()) if saved.is_file() else 0)
        self.shorter[number] = list(shorter)

    def stop(self, number: int) -> None:
        del self.running[number]

    def poll(self) -> list:
        if self.on_poll:
            self.on_poll()
        events = []
        for number, (config, before) in list(self.running.items()):
            epoch = before + 1
            self.trained_epochs.append((number, epoch))
            where: dict[str, Any] = {"number": number, "step": epoch * STEPS_PER_EPOCH, "epoch": float(epoch)}
            if config.lora.r == self.diverging_rank:
                events.append(Diverged(**where, reason="loss nan"))
                del self.running[number]
                continue
            value = loss(config, epoch)
            events.append(Evaluated(**where, evaluation=epoch, eval_loss=value, costs=costs(config)))
            self.running[number] = (config, epoch)
            events += self.milestones(number, epoch, where)
            if epoch == config.training.num_train_epochs:
                adapter = write_adapter(self.folder.trial(number), config)
                events.append(Finished(**where, metrics=final(config), adapter_folder=adapter))
                del self.running[number]
        return events

    def milestones(self, number: int, epoch: int, where: dict[str, Any]) -> list:
        """A shorter run ends with its last epoch; one that decays parts from this one before it."""
        events = []
        for config in self.shorter[number]:
            epochs = config.training.num_train_epochs
            if epoch != epochs - decays(config):
                continue
            folder = folder_of_shorter_run(self.folder.trial(number), epochs)
            if decays(config):
                write_checkpoint(folder, epoch)
            else:
                write_adapter(folder, config)
            metrics = {} if decays(config) else final(config)
            events.append(Milestone(**where, epochs=epochs, evaluation=epoch, metrics=metrics))
        return events

    def save_checkpoints(self) -> None:
        for number, (_, epoch) in self.running.items():
            write_checkpoint(self.folder.trial(number), epoch)

    def linears(self, model) -> LinearMap:
        return LINEARS


def final(config: TrialConfig) -> dict[str, float]:
    """The figures at the end of a trial."""
    epochs = config.training.num_train_epochs
    return {"eval_loss": loss(config, epochs), "steps": float(STEPS_PER_EPOCH * epochs), **costs(config)}


def costs(config: TrialConfig) -> dict[str, float]:
    return {"trainable_params": config.lora.r * 96.0}


def write_adapter(folder: Path, config: TrialConfig) -> Path:
    """An adapter that says what it is of."""
    adapter = folder / "adapter"
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "of").write_text(f"{config.lora.r} {config.training.num_train_epochs}")
    return adapter


def write_checkpoint(folder: Path, epoch: int) -> None:
    (folder / "checkpoint").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoint" / "epoch").write_text(str(epoch))


class Killed(BaseException):
    """The process died here."""


@dataclass
class Countdown:
    """Lets `calls` calls pass and kills at the next one, before or after it does its work."""

    calls: int
    after: bool = False

    def guard(self, target: Any) -> Any:
        return _Guarded(target, self)

    def call(self, operation, *args: Any, **kwargs: Any) -> Any:
        self.calls -= 1
        if self.calls == -1 and not self.after:
            raise Killed
        result = operation(*args, **kwargs)
        if self.calls == -1:
            raise Killed
        return result


class _Guarded:
    def __init__(self, target: Any, countdown: Countdown) -> None:
        self._target, self._countdown = target, countdown

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        return functools.partial(self._countdown.call, value) if callable(value) else value


def spec(training: dict[str, Any] | None = None, **sweep: Any) -> StudySpec:
    settings = {
        "sampler": "grid",
        "pruner": "none",
        "parameters": {"r": {"values": [2, 4, 8]}, "learning_rate": {"values": [1e-3, 2e-3]}},
    }
    return StudySpec.model_validate(
        {
            "study_name": "scripted",
            "model": {"model_name_or_path": "none/none"},
            "data": {"train": "none.jsonl"},
            "training": {"num_train_epochs": 3, **(training or {})},
            "sweep": settings | sweep,
        }
    )


def run(
    folder: RunFolder,
    study: StudySpec,
    stream: io.StringIO,
    countdown: Countdown | None = None,
    stop: StopRequest | None = None,
    trainer: ScriptedExecutor | None = None,
    opened: StudyStore | None = None,
    **executor: Any,
):
    """One call of the coordinator on a study; whether it is complete, and the executor."""
    trainer = trainer or ScriptedExecutor(folder, **executor)
    guard = countdown.guard if countdown else lambda target: target
    folder.make()
    display = PlainDisplay(stream)
    opened = opened or open_store(study, f"sqlite:///{folder.database}")
    with opened as store, Journal(folder.root) as journal:
        if store.base_losses() is None:
            store.keep_base_losses(BASE_LOSS, None)
        display.start("scripted", *reversed(store.budget()))
        coordinator = Coordinator(
            study,
            store=guard(store),
            executor=guard(trainer),
            journal=guard(journal),
            display=display,
            folder=guard(folder),
            stop=stop or StopRequest(),
            tracking_status=str,
            checkpoint_interval_s=0.0,
        )
        return coordinator.run(), trainer


def store_in_memory(study: StudySpec) -> StudyStore:
    """A store that is gone with the process, ten times as fast as SQLite."""
    storage = optuna.storages.InMemoryStorage()
    sampler, pruner = build_sampler(study.sweep, 0), build_pruner(study)
    asked = optuna.create_study(storage=storage, study_name=study.study_name, sampler=sampler, pruner=pruner)
    return StudyStore(study, asked, storage, sqlalchemy.create_engine("sqlite://"))


def results(folder: RunFolder, study: StudySpec) -> dict:
    with open_store(study, f"sqlite:///{folder.database}", create=False) as store:
        return {one.number: one for one in store.results()}


def journaled_ends(folder: RunFolder) -> list[tuple[int, str]]:
    records = (entry.record for entry, _ in read(folder.root))
    return sorted((one.number, one.state) for one in records if type(one) is TrialEnded)
