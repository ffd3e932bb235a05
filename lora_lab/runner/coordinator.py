"""The loop of a sweep: ask the search, admit to the pack, train, tell.

A trial that another one's training contains is told with the figures there, or branches from it (`trajectories`).

The order of writes makes a kill at any moment harmless. A trial's files come first, then the search's storage
(the truth), then the journal from which MLflow is fed; what is missing in the journal after a kill is added
from the storage when the study is opened again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

from lora_lab.common.activity import TRAINING, Interrupted, unwatched
from lora_lab.common.errors import InputError
from lora_lab.runner.announcer import Announcer
from lora_lab.runner.choosable import Choosable
from lora_lab.runner.confirmation import Confirmation
from lora_lab.runner.executor import Work
from lora_lab.runner.time_limit import search_share
from lora_lab.runner.trajectories import Trajectories
from lora_lab.study.engines import EngineChoice, engine_for
from lora_lab.study.events import (
    ENDINGS,
    Diverged,
    Evaluated,
    Failed,
    Finished,
    Milestone,
    OutOfMemory,
    Started,
    TrialEvent,
)
from lora_lab.study.measures import EVAL_LOSS
from lora_lab.study.results import FINISHED_WITH_VALUE
from lora_lab.terminal.messages import Tick, TrialOver
from lora_lab.tracking.records import TrialEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.common.activity import Beat
    from lora_lab.results.folder import RunFolder
    from lora_lab.runner.executor import Executor
    from lora_lab.runner.identities import Identities
    from lora_lab.runner.stopping import StopRequest
    from lora_lab.runner.time_limit import TimeLimit
    from lora_lab.search.store import Asked, StudyStore
    from lora_lab.study.results import TrialResult, TrialState
    from lora_lab.study.spec import StudySpec
    from lora_lab.terminal.display import Display
    from lora_lab.tracking.journal import Journal

FAILURES: dict[type[TrialEvent], TrialState] = {
    Diverged: "diverged",
    OutOfMemory: "out_of_memory",
    Failed: "failed",
}
TICK_S = 1.0
LOOK_AHEAD = 8
"""Trials on other bases that may wait for theirs."""


class Coordinator:
    """Runs one study to its end, or until it is asked to stop.

    Args:
        spec: The study.
        store: The search and its storage.
        executor: Who trains.
        journal: Where events are kept for MLflow and the report.
        display: What the user sees.
        folder: The study's files.
        identities: Tell which configurations are one training.
        stop: Set by Ctrl-C and SIGTERM.
        limit: When this call must end.
        tracking_status: How far MLflow is behind, in words.
        beat: Called before each call of `Executor.wait`, and so about once a step.
    """

    def __init__(
        self,
        spec: StudySpec,
        *,
        store: StudyStore,
        executor: Executor,
        journal: Journal,
        display: Display,
        folder: RunFolder,
        identities: Identities,
        stop: StopRequest,
        limit: TimeLimit,
        tracking_status: Callable[[], str],
        beat: Beat = unwatched,
    ) -> None:
        self._spec, self._store, self._executor = spec, store, executor
        self._journal, self._display, self._folder, self._stop = journal, display, folder, stop
        self._limit, self._tracking_status, self._beat = limit, tracking_status, beat
        self._next_tick = 0.0
        self._judged = spec.sweep.judged
        self._announcer = Announcer(journal, display, folder, identities, self._judged)
        self._confirmation = Confirmation(spec, store, identities, display)
        self._trajectories = Trajectories(spec, store, folder, identities, self._shared)
        self._starting: dict[int, Asked] = {}
        """Trials whose start the executor has not told yet."""
        self._held_back = False
        """Whether a trial was kept from beginning, for it might not have ended in time."""
        self._choosable = Choosable.of(spec.sweep, store.record.base_value())

    def run(self) -> bool:
        """Train until the budget or the time is used up; True when the study is complete."""
        self._take_up()
        _, trials = self._store.budget()
        self._limit.keep_for_retrainings(search_share(self._spec.sweep, trials))
        if not self._train():
            return False
        self._limit.search_is_over()
        if self._confirmation.enqueue() and not self._train():
            return False
        done, _ = self._store.budget()
        return not self._held_back or done == trials

    # Taking up a study that was begun before

    def _take_up(self) -> None:
        results = self._store.results()
        self._trajectories.take_up(results, self._store.running())
        ended = [result for result in results if result.state != "running"]
        for result in ended:
            self._folder.drop_checkpoint(result.number)  # a kill may have come just before
        # The ends that a kill kept out of the journal after they were told to the storage.
        for result in ended:
            if result.number not in self._journal.ended_trials:
                self._announcer.record(result, self._store.result)
        for result in ended:
            self._choosable.add(result)
        self._tidy_adapters()
        self._confirmation.take_up()

    # The loop

    def _train(self) -> bool:
        """Train until no trial is left that may begin; False when the training was stopped, or out of time."""
        with suppress(Interrupted):  # what was asked for and has not begun goes on next time
            while not self._is_over:
                self._fill()
                if not self._executor.active:
                    return not self._is_over
                self._beat(TRAINING)
                self._handle(self._executor.wait(TICK_S))
                self._tick()
        self._executor.close(save=True)
        return False

    @property
    def _is_over(self) -> bool:
        return self._stop.requested or self._limit.passed

    def _tick(self) -> None:
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK_S
            executor = self._executor
            self._display.tell(Tick(executor.tokens_per_second, self._tracking_status(), executor.steps))

    def _fill(self) -> None:
        while not self._is_over:
            if not self._limit.admits_another:
                self._held_back = True
                return
            asked = self._next_asked()
            if asked is None:
                return
            self._start(asked)

    def _next_asked(self) -> Asked | None:
        """The next trial that can start now; asked for only when there is a place, since later questions know more.

        A trial on another base than the pack's waits until the pack is empty, and so each base is loaded as few
        times as looking a little ahead allows. While the storage is away, those that train go on, and none is asked
        for.
        """
        if (waited := self._trajectories.next_waiting(self._executor.accepts)) is not None:
            return waited
        while self._executor.has_room and self._trajectories.waiting < LOOK_AHEAD:
            if self._executor.active and not self._store.answers:
                return None
            asked = self._store.ask(self._trajectories.reserved)
            if asked is None or self._executor.accepts(asked.config):
                return asked
            self._trajectories.wait(asked)
        return None

    def _start(self, asked: Asked) -> None:
        try:
            shorter = self._trajectories.begin(asked)
        except InputError as error:
            self._announcer.started(asked, engine_for(asked.config))
            self._end(Failed(number=asked.number, step=0, epoch=0.0, reason=str(error)))
            return
        if shorter is not None:
            self._starting[asked.number] = asked
            with self._stop.deferred(deferred=bool(self._executor.active)):  # alone, it may load another base
                self._executor.start(Work(asked.number, asked.config, tuple(shorter)))
            self._handle(self._executor.wait(0.0))

    # What trials tell

    def _handle(self, events: list[TrialEvent]) -> None:
        """Report everything first, then prune: trials of one step are compared with each other."""
        events = self._announce_started(events)
        self._journal.append(*(event for event in events if not isinstance(event, Milestone)))
        for event in events:
            self._display.tell(event)
            if isinstance(event, Evaluated):
                self._store.report(event.number, event.evaluation, event.eval_loss, event.costs)
        training = {*self._executor.active, *(event.number for event in events)}
        for event in events:
            if isinstance(event, Milestone):
                self._trajectories.reached(event, training)
        # Asked for trials that end here too: it makes their values count on the rungs.
        rejected = {e.number for e in events if isinstance(e, Evaluated) and self._store.should_prune(e.number)}
        ending = {event.number for event in events if isinstance(event, ENDINGS)}
        for event in events:
            if event.number in ending:
                if not isinstance(event, Evaluated):
                    self._end(event)
            elif event.number in rejected and isinstance(event, Evaluated):
                self._prune(event)
        if any(isinstance(event, (Finished, Milestone)) for event in events):
            self._tidy_adapters()

    def _announce_started(self, events: list[TrialEvent]) -> list[TrialEvent]:
        """Journal and show the trials that have a place on a device now; the other events.

        What trains them is kept first: a kill between the two lets the trial start again.
        """
        for event in events:
            if isinstance(event, Started):
                engine = EngineChoice(event.engine, event.reason)
                self._store.keep_engine(event.number, engine)
                self._announcer.started(self._starting.pop(event.number), engine)
                self._limit.trial_began(event.number)
        return [event for event in events if not isinstance(event, Started)]

    def _end(self, event: TrialEvent) -> None:
        """Tell the storage how a trial ended; other events pass."""
        match event:
            case Finished():
                self._store.finish(event.number, event.metrics, event.reason)
                result = self._store.result(event.number)  # diverged where an objective is not finite
                self._close(event.number, result.state, event, reason=result.reason, metrics=dict(event.metrics))
                self._choosable.add(result)
            case Diverged() | OutOfMemory() | Failed():
                self._store.fail(event.number, FAILURES[type(event)], event.reason)
                self._close(event.number, FAILURES[type(event)], event, reason=event.reason)

    def _prune(self, event: Evaluated) -> None:
        self._executor.stop(event.number)
        reason = f"not in the better half at evaluation {event.evaluation}"
        metrics = {EVAL_LOSS.name: event.eval_loss, **event.scores}
        self._store.prune(event.number, reason, metrics)
        self._close(event.number, "pruned", event, reason=reason, metrics=metrics)

    def _close(
        self,
        number: int,
        state: TrialState,
        event: TrialEvent,
        *,
        reason: str = "",
        metrics: dict[str, float] | None = None,
    ) -> None:
        folder = self._folder.files_of(number).adapter if isinstance(event, Finished) else None
        self._limit.trial_ended(number, trained_whole=isinstance(event, Finished))
        self._journal.append(
            TrialEnded(
                number=number,
                state=state,
                step=event.step,
                reason=reason,
                metrics=metrics or {},
                adapter_folder=folder,
            )
        )
        value = (metrics or {}).get(self._judged.name)
        self._display.tell(TrialOver(number, state, value, reason))
        self._folder.drop_checkpoint(number)
        self._trajectories.end(number, has_value=state in FINISHED_WITH_VALUE)

    def _shared(self, result: TrialResult) -> None:
        """Say that a trial was told what another one trained."""
        self._announcer.shared(result, self._store.result)
        self._choosable.add(result)

    # Files

    def _tidy_adapters(self) -> None:
        """Drop the adapters of trials that can no longer be chosen."""
        for number in self._choosable.take_out():
            self._folder.drop_adapter(number)
