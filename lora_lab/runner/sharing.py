"""Which trials need no training of their own: those equivalent to another, and those that a longer one contains."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lora_lab.common.errors import InputError
from lora_lab.study.identity import trial_identity
from lora_lab.study.targets import resolve_targets
from lora_lab.study.trajectory import shorter_choices, trajectory_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from lora_lab.search.records import Asked
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value
    from lora_lab.study.targets import LinearMap


@dataclass(frozen=True, slots=True)
class Shorter:
    """A configuration with fewer epochs that a trial contains."""

    params: Mapping[str, Value]
    config: TrialConfig
    identity: str


@dataclass(slots=True)
class Carrier:
    """A trial whose training contains shorter ones."""

    number: int
    trajectory: str
    ahead: dict[int, Shorter]
    """Those that it has not given away, by their epochs; after its end, those that it never came to."""
    ended: bool = False


class Origin(NamedTuple):
    """The trial whose outcome another one has."""

    number: int
    epochs: int | None
    """After so many epochs; None: the whole outcome, of an equivalent trial."""


class Follower(NamedTuple):
    """A trial that waits for another's."""

    asked: Asked
    epochs: int | None


class Sharing:
    """Knows who trains what, and who waits for whom; writes nothing.

    Args:
        spec: The study.
        linears: The linear modules of a base.
    """

    def __init__(self, spec: StudySpec, linears: Callable[[ModelSettings], LinearMap]) -> None:
        self._spec, self._linears = spec, linears
        self._owners: dict[str, int] = {}
        """Which trial trains, or trained, each distinct configuration."""
        self._carriers: dict[int, Carrier] = {}
        self._followers: dict[int, list[Follower]] = {}
        self.ended: set[int] = set()

    def identity(self, config: TrialConfig, *, any_seed: bool = False) -> str:
        """The hash of what is trained; with `any_seed`, equal for replicates.

        Raises:
            InputError: the targets match no module of the base.
        """
        if any_seed:
            config = config.changed(training={"seed": 0})
        return trial_identity(config, self._modules(config))

    def remember(self, result: TrialResult) -> None:
        """Take up a trial that was asked for before; to be called in the order of their numbers."""
        with suppress(InputError):  # of targets that match nothing: told as failed, when it is started or before
            self._owners.setdefault(self.identity(result.config), result.number)
            if result.state != "running" and not result.has_value and result.source is None:
                reached = max(result.curve, default=0)
                self._carry(result.number, result.params, result.config, is_replicate=result.replicate > 0)
                if (carrier := self._carriers.get(result.number)) is not None:
                    carrier.ended = True
                    carrier.ahead = {epochs: one for epochs, one in carrier.ahead.items() if epochs > reached}
        if result.state != "running":
            self.ended.add(result.number)

    def origin(self, asked: Asked) -> Origin | None:
        """Whose outcome this trial has or will have; None where it trains itself.

        Raises:
            InputError: its targets match no module of the base.
        """
        owner = self._owners.setdefault(self.identity(asked.config), asked.number)
        if owner != asked.number:
            return Origin(owner, None)
        trajectory = self._trajectory(asked.config)
        if asked.replicate or asked.branched_from is not None or trajectory is None:
            return None
        epochs = asked.config.training.num_train_epochs
        carriers = [one for one in self._carriers.values() if one.trajectory == trajectory and epochs in one.ahead]
        best = min(carriers, key=lambda one: (one.ended, one.number), default=None)
        return None if best is None or best.number == asked.number else Origin(best.number, epochs)

    def begin(self, asked: Asked) -> list[TrialConfig]:
        """Note that a trial trains; the shorter ones that are wanted of it."""
        if asked.branched_from is None:
            self._carry(asked.number, asked.params, asked.config, is_replicate=asked.replicate > 0)
        carrier = self._carriers.get(asked.number)
        return [] if carrier is None else [shorter.config for shorter in carrier.ahead.values()]

    def follow(self, asked: Asked, origin: Origin) -> None:
        """Note that a trial waits for another's outcome."""
        self._followers.setdefault(origin.number, []).append(Follower(asked, origin.epochs))

    def leave(self, number: int) -> Asked:
        """Let a trial that waits for another wait no longer."""
        [(source, follower)] = (
            (source, one)
            for source, all_of_it in self._followers.items()
            for one in all_of_it
            if one.asked.number == number
        )
        self._followers[source].remove(follower)
        return follower.asked

    def give(self, number: int, epochs: int) -> Shorter | None:
        """Note that a trial has come to where a shorter one ends or parts from it; None where that is not wanted."""
        carrier = self._carriers.get(number)
        return None if carrier is None else carrier.ahead.pop(epochs, None)

    def owner(self, identity: str) -> int | None:
        """The trial that trains or trained this, None where none does."""
        return self._owners.get(identity)

    def own(self, identity: str, number: int) -> None:
        """Note that a trial was added for this."""
        self._owners[identity] = number

    def end(self, number: int, *, has_value: bool) -> list[Follower]:
        """Note that a trial is over; those that waited for it."""
        self.ended.add(number)
        if has_value:
            self._carriers.pop(number, None)
        elif number in self._carriers:
            self._carriers[number].ended = True
        return self._followers.pop(number, [])

    @property
    def reserved(self) -> int:
        """Trials of the search that are expected from those in training."""
        running = (carrier for carrier in self._carriers.values() if not carrier.ended)
        expected = {shorter.identity for carrier in running for shorter in carrier.ahead.values()}
        return len(expected - self._owners.keys())

    def _carry(self, number: int, params: Mapping[str, Value], config: TrialConfig, *, is_replicate: bool) -> None:
        trajectory = self._trajectory(config)
        if is_replicate or trajectory is None:
            return
        ahead = {}
        for choice in shorter_choices(self._spec, params):
            shorter = self._spec.trial_config(choice)
            ahead[shorter.training.num_train_epochs] = Shorter(choice, shorter, self.identity(shorter))
        if ahead:
            self._carriers[number] = Carrier(number, trajectory, ahead)

    def _trajectory(self, config: TrialConfig) -> str | None:
        return trajectory_identity(config, self._modules(config))

    def _modules(self, config: TrialConfig) -> tuple[str, ...]:
        return resolve_targets(self._linears(config.model), config.lora)
