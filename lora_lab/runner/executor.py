"""Who trains: the interface between a study's coordinator and the devices. Neither torch nor Ray is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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


@dataclass(frozen=True, slots=True)
class Work:
    """A trial to train."""

    number: int
    config: TrialConfig
    shorter: Sequence[TrialConfig] = ()
    """Runs of fewer epochs that this one contains and whose milestones are wanted."""


class Executor(Protocol):
    """Trains trials on devices and says what happened; knows nothing of the search.

    **Order of calls.** `prepare` first, once; `close` last. Between them, in any order and any number of times:
    `base_losses` and `base_scores`; `start` for a configuration that `accepts` has just taken, under a number that is
    not active; `stop` for a number that is active; `wait`. One thread makes all calls.

    **Events.** Of every trial that was started, `wait` tells `Started` first and exactly one of `ENDINGS` last. Between
    them come `Logged`, `Evaluated` and `Milestone` by rising step; at one step an evaluation comes before the
    milestones and the ending that rest on it. A trial is active from `start` until its ending was told. Of a trial that
    was stopped, nothing more is told. Events name no paths: the files of a trial lie in the study's folder under its
    number (`RunFolder`), and are there before the event that speaks of them is told.

    **Going on.** A number that was trained before, by this executor or by one that was killed, goes on from its
    checkpoint, if it left one: steps after that are trained and told again, with the same values. Checkpoints are
    written inside `wait` before it trains on, so what a checkpoint lies behind was told, and its caller was done with
    it. How often they are written is the executor's business.

    **Stopping.** Where the `Beat` that an executor was made with raises `Interrupted`, `wait` and `start` leave what is
    half done (an evaluation, the admission of a trial) to be made again, and return as ever; `prepare`, `base_losses`
    and `accepts` let it pass.

    **Errors.** What is wrong with one trial, its checkpoint included, is told as its `Failed`. An exception is about
    the study: `prepare`, `base_losses` and `base_scores` raise InputError for a base or data that cannot be used; any
    call may raise StorageError for a disk that cannot be written. After an exception, only `close` may be called.
    """

    def prepare(self, example: TrialConfig) -> Prepared:
        """Load the base and the data of the study, as this one of its configurations names them."""

    def base_losses(self, config: TrialConfig) -> tuple[float, float | None]:
        """eval_loss and forgetting loss of the bare base on the configuration's data, in nats per token."""

    def base_scores(self, config: TrialConfig) -> dict[str, float]:
        """The bare base's metrics, those that `config.evaluation` asks for."""

    @property
    def active(self) -> tuple[int, ...]:
        """Numbers of the trials that were started and whose ending was not told yet, waiting ones included."""

    @property
    def has_room(self) -> bool:
        """Whether some trial could start now, so that it makes sense to ask the search for one."""

    @property
    def tokens_per_second(self) -> float:
        """Trained tokens per second of all trials together, recently."""

    @property
    def steps(self) -> Mapping[int, tuple[int, int]]:
        """Optimizer steps that are done, and all that there are, of each trial in training."""

    def accepts(self, config: TrialConfig) -> bool:
        """Whether this very configuration could start now; always, where nothing is active."""

    def start(self, work: Work) -> None:
        """Begin a trial, or go on with it from its checkpoint."""

    def stop(self, number: int) -> None:
        """End a trial early; its files stay as they are."""

    def wait(self, timeout_s: float) -> list[TrialEvent]:
        """Train on until something happened, and tell it in order.

        Args:
            timeout_s: Return after about so long with an empty list, if nothing happened. An executor in this process
                is not interrupted within a training step, so it may take longer. With 0 only what is known already
                is told, and nothing is trained.
        """

    def close(self, *, save: bool) -> None:
        """End all trials and give the devices back; calling it again does nothing.

        Args:
            save: Write checkpoints first, so that nothing that was trained is lost. An executor that cannot within
                20 s leaves the checkpoints that there are.
        """


@dataclass(frozen=True, slots=True)
class Backend:
    """Where a study trains: an executor, and what can be known of bases without it."""

    executor: Executor
    linears: Callable[[ModelSettings], LinearMap]
    """The linear modules of a base, from its config alone; needs no device."""
