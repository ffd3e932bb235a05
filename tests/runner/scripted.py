"""Studies whose trials are arithmetic, run by the real coordinator, and killed at any of its calls."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna

from lora_lab.common.errors import InputError
from lora_lab.runner.coordinator import Coordinator
from lora_lab.runner.identities import Identities
from lora_lab.runner.scripted import LINEARS, Fault, Script, ScriptedExecutor, falling_loss
from lora_lab.runner.stopping import StopRequest
from lora_lab.runner.time_limit import TimeLimit
from lora_lab.search.patience import Patience, PatientStorage
from lora_lab.search.pruners import build_pruner
from lora_lab.search.samplers import build_sampler
from lora_lab.search.store import StudyStore
from lora_lab.study.events import Diverged
from lora_lab.study.spec import StudySpec
from lora_lab.terminal.display import Display, PlainView
from lora_lab.terminal.messages import StudyBegan
from lora_lab.tracking.journal import Journal, read
from lora_lab.tracking.records import TrialEnded

if TYPE_CHECKING:
    import io
    from pathlib import Path

    from lora_lab.results.folder import RunFolder
    from lora_lab.study.settings import TrialConfig

BASE_LOSS = Script().base_loss
loss = falling_loss


def executor_for(
    folder: RunFolder, *, pack_size: int = 2, refused_rank: int | None = None, diverging_rank: int | None = None
) -> ScriptedExecutor:
    """An executor that refuses trials of one rank, and lets those of another diverge in their first epoch."""

    def fault(config: TrialConfig, epoch: int) -> Fault | None:
        if config.lora.r == refused_rank:
            raise InputError(f"r={config.lora.r} is refused")
        return Fault(Diverged, "loss nan") if epoch and config.lora.r == diverging_rank else None

    return ScriptedExecutor(folder.trials, pack_size, Script(fault=fault))


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
    limit: TimeLimit | None = None,
    **executor: Any,
):
    """One call of the coordinator on a study; whether it is complete, and the executor."""
    trainer = trainer or executor_for(folder, **executor)
    guard = countdown.guard if countdown else lambda target: target
    folder.make()
    display = Display(PlainView(stream))
    with opened or store_of(folder, study) as store, Journal(folder.root) as journal:
        if store.record.base_values() is None:
            store.record.keep_base_values({"eval_loss": BASE_LOSS})
        done, total = store.budget()
        display.tell(StudyBegan("scripted", total, None, done, study.sweep.judged))
        coordinator = Coordinator(
            study,
            store=guard(store),
            executor=guard(trainer),
            journal=guard(journal),
            display=display,
            folder=guard(folder),
            identities=Identities(lambda _: LINEARS),
            stop=stop or StopRequest(),
            limit=limit or TimeLimit(None),
            tracking_status=str,
        )
        return coordinator.run(), trainer


DATABASES: dict[Path, optuna.storages.InMemoryStorage] = {}


def store_of(folder: RunFolder, study: StudySpec) -> StudyStore:
    """A study's store in memory: it outlives `Killed`, as a database does, and is ten times as fast as SQLite."""
    storage = DATABASES.setdefault(folder.root, optuna.storages.InMemoryStorage())
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    asked = optuna.create_study(
        storage=storage,
        study_name=study.study_name,
        directions=[metric.goal for metric in study.sweep.metric],
        sampler=build_sampler(study.sweep, 0),
        pruner=build_pruner(study),
        load_if_exists=True,
    )
    return StudyStore(study, asked, PatientStorage(storage, "sqlite://", Patience(), is_server=False), ExitStack())


def results(folder: RunFolder, study: StudySpec) -> dict:
    return {one.number: one for one in store_of(folder, study).results()}


def journaled_ends(folder: RunFolder) -> list[tuple[int, str]]:
    records = (entry.record for entry, _ in read(folder.root))
    return sorted((one.number, one.state) for one in records if type(one) is TrialEnded)
