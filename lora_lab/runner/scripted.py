"""An executor whose trials are arithmetic: the whole platform runs on it in seconds, without torch.

Everything but the training is real: events come in the order that `Executor` promises, checkpoints and adapters are
folders of the study, milestones leave their files. `Script` says what trials measure and what befalls them.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from lora_lab.common.errors import CheckpointError, InputError, TrainingError
from lora_lab.runner.checkpoint_clock import CheckpointClock
from lora_lab.runner.executor import Backend, Prepared
from lora_lab.study.best import Measured, judge
from lora_lab.study.engines import EngineChoice, engine_for
from lora_lab.study.events import (
    ENDINGS,
    Diverged,
    Evaluated,
    Failed,
    Finished,
    Logged,
    Milestone,
    OutOfMemory,
    Started,
)
from lora_lab.study.measures import MEASURES
from lora_lab.study.targets import LinearMap, LinearShape, trainable_parameters
from lora_lab.study.trial_folder import TrialFolder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_lab.results.folder import RunFolder
    from lora_lab.runner.executor import Work
    from lora_lab.study.best import Judged
    from lora_lab.study.events import TrialEvent
    from lora_lab.study.settings import ModelSettings, TrialConfig

STEPS_PER_EPOCH = 4
TOKENS_PER_STEP = 256
PROJECTIONS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
LINEARS = LinearMap(
    {f"model.layers.{layer}.{name}": LinearShape(8, 8) for layer in range(2) for name in PROJECTIONS}, None, 2, 1000
)
"""The linear modules of every scripted base: two layers of three, each 8 by 8."""


def decays(config: TrialConfig) -> bool:
    """Whether the last epoch is a decay, at whose beginning a shorter run branches from a longer one."""
    return config.training.lr_scheduler_type == "warmup_stable_decay"


def falling_loss(config: TrialConfig, epoch: int) -> float:
    """eval_loss after an epoch: lower with rank and epochs, higher with the rate, a little different for every seed."""
    training = config.training
    value = 3.0 - 0.01 * config.lora.r - 0.1 * epoch + 0.001 * training.seed + training.learning_rate
    return value - 0.05 * (decays(config) and epoch == training.num_train_epochs)


class Fault(NamedTuple):
    """How a trial ends before its time."""

    ending: type[Diverged | OutOfMemory | Failed]
    reason: str


def no_fault(config: TrialConfig, epoch: int) -> Fault | None:
    """Let every trial reach its end."""
    del config, epoch
    return None


@dataclass(frozen=True)
class Script:
    """What trials measure, and what befalls them."""

    loss: Callable[[TrialConfig, int], float] = falling_loss
    """eval_loss of a configuration after an epoch, in nats per token."""
    fault: Callable[[TrialConfig, int], Fault | None] = no_fault
    """What befalls a configuration in an epoch; in epoch 0, when it is started. An InputError that it raises is told
    as the trial's failure, as the mistakes of a real configuration are."""
    base_loss: float = 4.0
    forgetting_loss: float | None = None
    """The loss of the bare base, and of every trial, on general text."""
    base_scores: Mapping[str, float] = field(default_factory=dict)
    """The metrics of the bare base; those of trials are in `costs`."""
    refused_base: str | None = None
    """Why the packed engine refuses the base, which no settings tell; None where it takes it."""

    def costs(self, config: TrialConfig) -> dict[str, float]:
        """What is known of a trial's price before its end."""
        return {"trainable_params": float(trainable_parameters(LINEARS, config.lora))}

    def judged(self, config: TrialConfig, epoch: int) -> Judged:
        """How a trial stands after an epoch, by all of its evaluations until then."""
        so_far = None
        for number in range(1 if config.training.load_best_model_at_end else epoch, epoch + 1):
            scores = {name: value for name, value in self.costs(config).items() if MEASURES[name].curve}
            measured = Measured(number, number * STEPS_PER_EPOCH, self.loss(config, number), scores)
            judged = judge(config.training, so_far, measured)
            so_far = judged.so_far
        return judged

    def final(self, config: TrialConfig, judged: Judged) -> dict[str, float]:
        """The metrics of a trial that ends with this evaluation."""
        steps = judged.now.step
        metrics = {"eval_loss": judged.left.eval_loss, **judged.figures, **self.costs(config)}
        metrics |= {"steps": float(steps), "epochs": float(judged.now.evaluation)}
        metrics |= {"train_seconds": 0.1 * steps, "train_tokens": float(TOKENS_PER_STEP * steps)}
        metrics |= {"peak_memory_bytes": 1e6 + 100 * metrics["trainable_params"]}
        if self.forgetting_loss is not None:
            metrics |= {"forgetting_loss": self.forgetting_loss, "forgetting": self.forgetting_loss - self.base_loss}
        return metrics


class Where(TypedDict):
    """What all events have."""

    number: int
    step: int
    epoch: float


@dataclass(slots=True)
class _Running:
    work: Work
    epoch: int


@dataclass
class ScriptedExecutor:
    """Trains by arithmetic: each `wait` is one epoch of every trial.

    Args:
        trials_folder: A folder for each trial's files is made in it.
        pack_size: How many trials train at once.
        script: What trials measure, and what befalls them.
        checkpoint_interval_s: 0 for a checkpoint before every epoch.
        trained_epochs: Every (number, epoch) that was trained, in order.
    """

    trials_folder: Path
    pack_size: int = 2
    script: Script = field(default_factory=Script)
    checkpoint_interval_s: float = 0.0
    trained_epochs: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._checkpoints = CheckpointClock(self.checkpoint_interval_s)
        self._running: dict[int, _Running] = {}
        self._told: list[TrialEvent] = []

    def prepare(self, example: TrialConfig) -> Prepared:
        """Nothing is loaded."""
        return Prepared("scripted device", (), (), {"base": example.model.model_name_or_path})

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """The losses of the bare base that the script names."""
        del config
        return self.script.base_loss, self.script.forgetting_loss

    def base_scores(self, config: TrialConfig) -> dict[str, float]:
        """The scores of the bare base that the script names."""
        del config
        return dict(self.script.base_scores)

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials in training, and of those whose ending was not told yet."""
        return tuple(dict.fromkeys((*self._running, *(event.number for event in self._told))))

    @property
    def has_room(self) -> bool:
        """Whether fewer than `pack_size` trials are active."""
        return len(self.active) < self.pack_size

    @property
    def tokens_per_second(self) -> float:
        """A number that looks like a speed."""
        return 10.0 * TOKENS_PER_STEP * len(self._running)

    @property
    def steps(self) -> Mapping[int, tuple[int, int]]:
        """Steps that are done, and all that there are, of each trial in training."""
        return {
            number: (
                running.epoch * STEPS_PER_EPOCH,
                running.work.config.training.num_train_epochs * STEPS_PER_EPOCH,
            )
            for number, running in self._running.items()
        }

    def accepts(self, config: TrialConfig) -> bool:
        """Whether there is room, on any base."""
        del config
        return self.has_room

    def start(self, work: Work) -> None:
        """Begin a trial, or go on with it from its checkpoint."""
        refused = self.script.refused_base
        choice = engine_for(work.config) if refused is None else EngineChoice("reference", refused)
        where = Where(number=work.number, step=0, epoch=0.0)
        self._told.append(Started(**where, engine=choice.name, reason=choice.reason))
        try:
            fault = self.script.fault(work.config, 0)
            running = _Running(work, _read_checkpoint(self._folder(work.number)))
        except (InputError, CheckpointError, TrainingError) as error:
            fault = Fault(Failed, str(error))
        if fault is None:
            self._running[work.number] = running
        else:
            self._told.append(fault.ending(**where, reason=fault.reason))

    def stop(self, number: int) -> None:
        """Take a trial out of training."""
        self._running.pop(number, None)
        self._told = [event for event in self._told if event.number != number]

    def wait(self, timeout_s: float) -> list[TrialEvent]:
        """What happened at the start of trials; else one epoch of every trial."""
        events, self._told = self._told, []
        if events or timeout_s <= 0:
            return events
        self._checkpoints.run(self._save_checkpoints)
        for running in list(self._running.values()):
            events += self._epoch(running)
        return events

    def close(self, *, save: bool) -> None:
        """Write checkpoints, if wanted, and forget all trials."""
        if save:
            self._save_checkpoints()
        self._running.clear()
        self._told.clear()

    def _epoch(self, running: _Running) -> list[TrialEvent]:
        number, config, epoch = running.work.number, running.work.config, running.epoch + 1
        self.trained_epochs.append((number, epoch))
        where = Where(number=number, step=epoch * STEPS_PER_EPOCH, epoch=float(epoch))
        judged, costs = self.script.judged(config, epoch), self.script.costs(config)
        loss = judged.now.eval_loss
        rate = config.training.learning_rate
        events: list[TrialEvent] = [Logged(**where, loss=loss + 0.1, grad_norm=1.0, learning_rate=rate)]
        fault = self.script.fault(config, epoch)
        if fault is not None:
            events.append(fault.ending(**where, reason=fault.reason))
        else:
            running.epoch = epoch
            events.append(Evaluated(**where, evaluation=epoch, eval_loss=loss, costs=costs))
            events += [
                self._milestone(running, shorter, stops=judged.stops)
                for shorter in running.work.shorter
                if _parts_after(shorter) == epoch or (judged.stops and _parts_after(shorter) > epoch)
            ]
            is_last = epoch == config.training.num_train_epochs
            if is_last or judged.stops:
                _write_adapter(self._folder(number), config)
                words = judged.words(is_last_step=is_last)
                events.append(Finished(**where, metrics=self.script.final(config, judged), reason=words))
        if isinstance(events[-1], ENDINGS):
            del self._running[number]
        return events

    def _milestone(self, running: _Running, shorter: TrialConfig, *, stops: bool) -> Milestone:
        """Leave the files of a shorter run where it ends, or where its decay begins."""
        number, epoch, epochs = running.work.number, running.epoch, shorter.training.num_train_epochs
        folder = self._folder(number).shorter_run(epochs)
        shutil.rmtree(folder.path, ignore_errors=True)
        is_branch = decays(shorter) and not stops
        if is_branch:
            _write_checkpoint(folder, epoch)
        else:
            _write_adapter(folder, shorter)
        judged = self.script.judged(shorter, epoch)
        return Milestone(
            number=number,
            step=epoch * STEPS_PER_EPOCH,
            epoch=float(epoch),
            epochs=epochs,
            evaluation=epoch,
            metrics={} if is_branch else self.script.final(shorter, judged),
            reason="" if is_branch else judged.words(is_last_step=epoch == epochs),
        )

    def _save_checkpoints(self) -> None:
        for number, running in self._running.items():
            _write_checkpoint(self._folder(number), running.epoch)

    def _folder(self, number: int) -> TrialFolder:
        return TrialFolder.of(self.trials_folder, number)


def scripted(folder: RunFolder, *, pack_size: int = 2, script: Script | None = None) -> Backend:
    """A scripted backend for a study's folder."""

    def linears(model: ModelSettings) -> LinearMap:
        del model
        return LINEARS

    return Backend(ScriptedExecutor(folder.trials, pack_size, script or Script()), linears)


def _parts_after(shorter: TrialConfig) -> int:
    """The epoch with which a shorter run ends, or after which it parts from the longer one."""
    return shorter.training.num_train_epochs - decays(shorter)


def _write_adapter(folder: TrialFolder, config: TrialConfig) -> None:
    """Write an adapter's configuration, which says what it is of."""
    folder.adapter.mkdir(parents=True, exist_ok=True)
    of = {"r": config.lora.r, "lora_alpha": config.lora.alpha, "num_train_epochs": config.training.num_train_epochs}
    (folder.adapter / "adapter_config.json").write_text(json.dumps(of))


def _write_checkpoint(folder: TrialFolder, epoch: int) -> None:
    folder.checkpoint.mkdir(parents=True, exist_ok=True)
    (folder.checkpoint / "manifest.json").write_text(json.dumps({"epoch": epoch}))


def _read_checkpoint(folder: TrialFolder) -> int:
    """The epoch after which a checkpoint was written; 0 where there is none."""
    path = folder.checkpoint / "manifest.json"
    if not path.exists():
        return 0
    try:
        return int(json.loads(path.read_text())["epoch"])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); delete it and run the same command again") from None
