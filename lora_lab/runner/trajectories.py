"""Trials that need no training of their own, or not from their beginning, because another trial trains it.

Five words. A *trajectory* is a long run that contains runs of fewer epochs. Each of these is a *shorter run*. The
*milestone* of a shorter run is the step of the trajectory where it ends or parts from it. A shorter run that ends
there is *read off*: it has the figures and the adapter of that step, as have the runs that are still ahead where the
trajectory stops early. One that parts from there, since its rate decays
earlier, is a *branch*: it goes on by itself from the trajectory's checkpoint of that step. A trial whose
configuration is equivalent to another's (the same modules, named in another way) has the whole outcome of that one.

A kill between any two writes loses nothing and doubles nothing, because of their order:

- A trial that was asked for gets its files first, and is told then. Killed between the two, it is a running trial
  that starts anew, and whoever writes its files replaces them.
- A trial that is added at a milestone is stored whole in one transaction, and gets its files then. Killed between
  the two, it finds them in the trajectory's folder when the study is taken up (`take_up`).
- What a milestone has to give is removed last, and a trajectory that is taken up from a checkpoint before the
  milestone comes to it again; what was given by then is known from the storage, and is not given twice.
- Who waits is kept in memory only: a follower is a running trial in the storage, and finds its origin anew.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from lora_lab.common.errors import InputError
from lora_lab.study.trajectory import shorter_choices

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from lora_lab.results.folder import RunFolder
    from lora_lab.runner.identities import Identities
    from lora_lab.search.records import Asked
    from lora_lab.search.store import StudyStore
    from lora_lab.study.events import Milestone
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.study.sweep import Value


@dataclass(frozen=True, slots=True)
class ShorterRun:
    """A configuration with fewer epochs that a trajectory contains."""

    params: Mapping[str, Value]
    config: TrialConfig
    identity: str


@dataclass(slots=True)
class Trajectory:
    """A trial whose training contains shorter runs."""

    number: int
    identity: str
    ahead: dict[int, ShorterRun]
    """The shorter runs whose milestones are still to come, by their epochs; after the end, those never come to."""
    ended: bool = False


def trajectory_of(trial: Asked | TrialResult, spec: StudySpec, identities: Identities) -> Trajectory | None:
    """The trajectory that a trial trains, with all its milestones ahead; None where it contains no shorter run.

    Raises:
        InputError: its targets match no module of the base.
    """
    identity = identities.of_trajectory(trial.config)
    if identity is None:
        return None
    ahead = {}
    for choice in shorter_choices(spec, trial.params):
        shorter = spec.trial_config(choice)
        training = identities.of_training(shorter)
        ahead[shorter.training.num_train_epochs] = ShorterRun(choice, shorter, training)
    return Trajectory(trial.number, identity, ahead) if ahead else None


class Follower(NamedTuple):
    """A trial that waits for the outcome of another."""

    asked: Asked
    origin: int
    """The other trial's number."""
    epochs: int | None
    """The milestone that it waits for; None for the end of an equivalent trial."""


class Trajectories:
    """Knows who trains what and who waits for whom, and gives trials what another trained: outcome, files, checkpoint.

    Args:
        spec: The study.
        store: The search and its storage.
        folder: The study's files.
        identities: Tell which configurations are one training, or one trajectory.
        told: Called with each trial that was told what another one trained, once it is in the storage.
    """

    def __init__(
        self,
        spec: StudySpec,
        store: StudyStore,
        folder: RunFolder,
        identities: Identities,
        told: Callable[[TrialResult], None],
    ) -> None:
        self._spec, self._store, self._folder = spec, store, folder
        self._identities, self._told = identities, told
        self._trainers: dict[str, int] = {}
        """Which trial trains, or trained, each distinct configuration."""
        self._trajectories: dict[int, Trajectory] = {}
        self._followers: dict[int, Follower] = {}
        self._ended: set[int] = set()
        self._waiting: deque[Asked] = deque()
        """Trials that were asked for, are to be trained, and have no place yet."""

    def take_up(self, results: Iterable[TrialResult], running: Iterable[Asked]) -> None:
        """Go on with the trials of an earlier session: what they train is known again, and the running ones wait.

        Args:
            results: All trials of the study, by number.
            running: Those that have not ended.
        """
        for result in results:
            with suppress(InputError):  # of targets that match nothing: told as failed, when it is started or before
                self._remember(result)
            if result.state != "running":
                self._ended.add(result.number)
            if result.source is not None:
                self._adopt(result.source, result.config, result.number)
        for asked in running:
            if asked.branched_from is not None:
                self._adopt(asked.branched_from, asked.config, asked.number)
            self._waiting.append(asked)

    def wait(self, asked: Asked) -> None:
        """Keep a trial until there is a place for it."""
        self._waiting.append(asked)

    def next_waiting(self, accepts: Callable[[TrialConfig], bool]) -> Asked | None:
        """Take out the first waiting trial whose configuration has a place now."""
        asked = next((one for one in self._waiting if accepts(one.config)), None)
        if asked is not None:
            self._waiting.remove(asked)
        return asked

    @property
    def waiting(self) -> int:
        """How many trials wait for a place."""
        return len(self._waiting)

    @property
    def reserved(self) -> int:
        """Trials of the search's budget that trajectories in training are expected to add at their milestones."""
        running = (one for one in self._trajectories.values() if not one.ended)
        expected = {shorter.identity for one in running for shorter in one.ahead.values()}
        return len(expected - self._trainers.keys())

    def begin(self, asked: Asked) -> list[TrialConfig] | None:
        """Decide whether a trial trains; where it does not, it is told what another trained, now or at its time.

        Returns:
            The shorter runs whose milestones are wanted of its training; None where it does not train.

        Raises:
            InputError: its targets match no module of the base.
        """
        trainer = self._trainers.setdefault(self._identities.of_training(asked.config), asked.number)
        if trainer != asked.number:
            self._follow(Follower(asked, trainer, None))
            return None
        trajectory = self._containing(asked)
        if trajectory is not None:
            self._follow(Follower(asked, trajectory.number, asked.config.training.num_train_epochs))
            return None
        apart = asked.branched_from is not None or asked.replicate
        own = None if apart else trajectory_of(asked, self._spec, self._identities)
        if own is None:
            return []
        self._trajectories[asked.number] = own
        return [shorter.config for shorter in own.ahead.values()]

    def reached(self, event: Milestone, training: Collection[int]) -> None:
        """Give the shorter run of a milestone to the trial that waits for it, or to a new one.

        Args:
            event: What a trajectory has come to.
            training: Trials that train now, or did until this moment: they need nothing.
        """
        trajectory = self._trajectories.get(event.number)
        shorter = None if trajectory is None else trajectory.ahead.pop(event.epochs, None)
        if shorter is not None:
            number = self._trainers.get(shorter.identity)
            if number is None or (number not in self._ended and number not in training):
                (self._branch if event.is_branch else self._read_off)(event, shorter, number)
        self._folder.drop_shorter_runs(event.number, event.epochs)

    def end(self, number: int, *, has_value: bool) -> None:
        """Note that a trial is over, and give its followers its outcome."""
        self._ended.add(number)
        if has_value:
            self._trajectories.pop(number, None)
        elif number in self._trajectories:
            self._trajectories[number].ended = True
        for follower in [one for one in self._followers.values() if one.origin == number]:
            del self._followers[follower.asked.number]
            if follower.epochs is None or not has_value:
                self._share(follower.asked.number, number)
            else:  # a kill took the milestone that it waited for
                self._waiting.append(follower.asked)
        self._folder.drop_shorter_runs(number)

    # Who trains what

    def _remember(self, result: TrialResult) -> None:
        self._trainers.setdefault(self._identities.of_training(result.config), result.number)
        if result.state == "running" or result.has_value or result.source is not None or result.replicate:
            return
        trajectory = trajectory_of(result, self._spec, self._identities)
        if trajectory is not None:
            reached = max(result.curve, default=0)
            trajectory.ended = True
            trajectory.ahead = {epochs: one for epochs, one in trajectory.ahead.items() if epochs > reached}
            self._trajectories[result.number] = trajectory

    def _containing(self, asked: Asked) -> Trajectory | None:
        """The trajectory of another trial with this one's milestone ahead: one in training before one that ended."""
        identity = self._identities.of_trajectory(asked.config)
        if asked.replicate or asked.branched_from is not None or identity is None:
            return None
        epochs = asked.config.training.num_train_epochs
        found = (one for one in self._trajectories.values() if one.identity == identity and epochs in one.ahead)
        first = min(found, key=lambda one: (one.ended, one.number), default=None)
        return None if first is None or first.number == asked.number else first

    # What is given

    def _follow(self, follower: Follower) -> None:
        if follower.origin in self._ended:
            self._share(follower.asked.number, follower.origin)
        else:
            self._followers[follower.asked.number] = follower

    def _read_off(self, event: Milestone, shorter: ShorterRun, number: int | None) -> None:
        if number is None:
            number = self._store.add_read_off(
                event.number, shorter.params, event.metrics, event.evaluation, event.reason
            )
            if number is None:
                return
            self._trainers[shorter.identity] = number
            self._adopt(event.number, shorter.config, number)
        else:
            self._recalled(number)
            self._adopt(event.number, shorter.config, number)
            self._store.share(
                number, event.number, metrics=event.metrics, evaluations=event.evaluation, reason=event.reason
            )
        self._conclude(number)

    def _branch(self, event: Milestone, shorter: ShorterRun, number: int | None) -> None:
        """Let the trial of a shorter run go on from the milestone as soon as there is a place for it."""
        if number is None:
            asked = self._store.add_branch(event.number, shorter.params, event.evaluation)
            if asked is None:
                return
            self._trainers[shorter.identity] = asked.number
        else:
            asked = self._recalled(number)
            if asked.config == shorter.config:  # a checkpoint belongs to one way of writing what is equivalent
                asked = self._store.branch(number, event.number, event.evaluation)
        if asked.branched_from is not None:
            self._adopt(event.number, shorter.config, asked.number)
        self._waiting.append(asked)

    def _recalled(self, number: int) -> Asked:
        """Take a trial out of those that wait for a place or for another trial."""
        for asked in self._waiting:
            if asked.number == number:
                self._waiting.remove(asked)
                return asked
        return self._followers.pop(number).asked

    def _share(self, number: int, source: int) -> None:
        """Tell a trial the outcome of another that has ended."""
        self._store.share(number, source)
        self._folder.drop_trial(number)
        self._conclude(number)

    def _conclude(self, number: int) -> None:
        result = self._store.result(number)
        self._told(result)
        self.end(number, has_value=result.has_value)

    def _adopt(self, source: int, shorter: TrialConfig, number: int) -> None:
        self._folder.adopt_shorter_run(source, shorter.training.num_train_epochs, number)
