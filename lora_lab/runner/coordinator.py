"""The loop of a sweep: ask the search, admit to the pack, train, tell.

A trial that another one's training contains is told with the figures there, or branches from it (`trajectories`).

The order of writes makes a kill at any moment harmless. A trial's files come first, then the search's storage
(the truth), then the journal from which MLflow is fed; what is missing in the journal after a kill is added
from the storage when the study is opened again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lora_lab.common.errors import CheckpointError, InputError, TrainingError
from lora_lab.runner.announcer import Announcer
from lora_lab.runner.finalists import Choosable, finalists, first_fresh_seed
from lora_lab.runner.identities import Identities
from lora_lab.runner.trajectories import Trajectories
from lora_lab.study.engines import engine_for
from lora_lab.study.events import Diverged, Evaluated, Failed, Finished, Milestone, OutOfMemory, TrialEvent
from lora_lab.study.results import FINISHED_WITH_VALUE
from lora_lab.tracking.records import TrialEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.results.folder import RunFolder
    from lora_lab.runner.executor import Executor
    from lora_lab.runner.stopping import StopRequest
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
CHECKPOINT_SHARE = 50
"""The next checkpoint comes at least this many times the newest one's duration later: at most 2% of the time."""
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
        stop: Set by Ctrl-C and SIGTERM.
        tracking_status: How far MLflow is behind, in words.
        checkpoint_interval_s: About this much work of a trial is repeated after a kill, at most.
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
        stop: StopRequest,
        tracking_status: Callable[[], str],
        checkpoint_interval_s: float = 30.0,
    ) -> None:
        self._spec, self._store, self._executor = spec, store, executor
        self._journal, self._display, self._folder, self._stop = journal, display, folder, stop
        self._tracking_status = tracking_status
        self._next_tick = 0.0
        self._interval_s = checkpoint_interval_s
        self._next_checkpoint = time.monotonic() + checkpoint_interval_s
        self._identities = Identities(executor.linears)
        self._announcer = Announcer(journal, display, folder, self._identities)
        self._trajectories = Trajectories(spec, store, folder, self._identities, self._shared)
        self._choosable: Choosable | None = None
        """None where several trials are best, or where retrainings will say which is: all adapters stay."""

    def run(self) -> bool:
        """Train until the budget is used up; True when the study is complete, False when asked to stop."""
        self._take_up()
        if not self._train():
            return False
        if self._spec.sweep.confirm is not None:
            self._enqueue_replicates()
            return self._train()
        return True

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
        sweep, losses = self._spec.sweep, self._store.base_losses()
        if not sweep.multi_objective and sweep.confirm is None:
            assert losses is not None
            self._choosable = Choosable(losses[0], sweep.verdict.margin)
            for result in ended:
                self._choosable.add(result)
            self._tidy_adapters()

    # The loop

    def _train(self) -> bool:
        while True:
            self._fill()
            if not self._executor.active:
                return not self._stop.requested
            self._handle(self._executor.poll())
            self._tick()
            if self._stop.requested or time.monotonic() >= self._next_checkpoint:
                self._save_checkpoints()
            if self._stop.requested:
                return False

    def _tick(self) -> None:
        if time.monotonic() >= self._next_tick:
            self._next_tick = time.monotonic() + TICK_S
            self._display.tick(self._executor.tokens_per_second, self._tracking_status())

    def _fill(self) -> None:
        while not self._stop.requested:
            asked = self._next_asked()
            if asked is None:
                return
            self._start(asked)

    def _next_asked(self) -> Asked | None:
        """The next trial that can start now; asked for only when there is a place, since later questions know more.

        A trial on another base than the pack's waits until the pack is empty, and so each base is loaded as few
        times as looking a little ahead allows.
        """
        if (waited := self._trajectories.next_waiting(self._executor.accepts)) is not None:
            return waited
        while self._executor.has_room and self._trajectories.waiting < LOOK_AHEAD:
            asked = self._store.ask(self._trajectories.reserved)
            if asked is None or self._executor.accepts(asked.config):
                return asked
            self._trajectories.wait(asked)
        return None

    def _start(self, asked: Asked) -> None:
        number, config = asked.number, asked.config
        try:
            shorter = self._trajectories.begin(asked)
            if shorter is None:
                return
            self._executor.submit(number, config, shorter)
        except (InputError, CheckpointError, TrainingError) as error:
            self._announcer.started(asked, engine_for(config))
            self._end(Failed(number=number, step=0, epoch=0.0, reason=str(error)))
            return
        self._announcer.started(asked, self._executor.engine_of(number, config))

    # What trials tell

    def _handle(self, events: list[TrialEvent]) -> None:
        """Report everything first, then prune: trials of one step are compared with each other."""
        self._journal.append(*(event for event in events if not isinstance(event, Milestone)))
        for event in events:
            self._display.event(event)
            if isinstance(event, Evaluated):
                self._store.report(event.number, event.evaluation, event.eval_loss, event.costs)
        training = {*self._executor.active, *(event.number for event in events)}
        for event in events:
            if isinstance(event, Milestone):
                self._trajectories.reached(event, training)
        # Asked for trials that end here too: it makes their values count on the rungs.
        rejected = {e.number for e in events if isinstance(e, Evaluated) and self._store.should_prune(e.number)}
        ending = {event.number for event in events if isinstance(event, (Finished, *FAILURES))}
        for event in events:
            if event.number in ending:
                if not isinstance(event, Evaluated):
                    self._end(event)
            elif event.number in rejected and isinstance(event, Evaluated):
                self._prune(event)
        if any(isinstance(event, (Finished, Milestone)) for event in events):
            self._tidy_adapters()

    def _end(self, event: TrialEvent) -> None:
        """Tell the storage how a trial ended; other events pass."""
        match event:
            case Finished():
                self._store.finish(event.number, event.metrics)
                result = self._store.result(event.number)  # diverged where an objective is not finite
                self._close(event.number, result.state, event, reason=result.reason, metrics=dict(event.metrics))
                if self._choosable is not None:
                    self._choosable.add(result)
            case Diverged() | OutOfMemory() | Failed():
                self._store.fail(event.number, FAILURES[type(event)], event.reason)
                self._close(event.number, FAILURES[type(event)], event, reason=event.reason)

    def _prune(self, event: Evaluated) -> None:
        self._executor.stop(event.number)
        reason = f"not in the better half at evaluation {event.evaluation}"
        self._store.prune(event.number, reason, {"eval_loss": event.eval_loss})
        self._close(event.number, "pruned", event, reason=reason, metrics={"eval_loss": event.eval_loss})

    def _close(
        self,
        number: int,
        state: TrialState,
        event: TrialEvent,
        *,
        reason: str = "",
        metrics: dict[str, float] | None = None,
    ) -> None:
        folder = event.adapter_folder if isinstance(event, Finished) else None
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
        loss = event.eval_loss if isinstance(event, Evaluated) else (metrics or {}).get("eval_loss")
        self._display.trial_ended(number, state, loss, reason)
        self._folder.drop_checkpoint(number)
        self._trajectories.end(number, has_value=state in FINISHED_WITH_VALUE)

    def _shared(self, result: TrialResult) -> None:
        """Say that a trial was told what another one trained."""
        self._announcer.shared(result, self._store.result)
        if self._choosable is not None:
            self._choosable.add(result)

    # Files

    def _save_checkpoints(self) -> None:
        started = time.monotonic()
        self._executor.save_checkpoints()
        took = time.monotonic() - started
        self._next_checkpoint = time.monotonic() + max(self._interval_s, CHECKPOINT_SHARE * took)

    def _tidy_adapters(self) -> None:
        """Drop the adapters of trials that can no longer be chosen."""
        for number in [] if self._choosable is None else self._choosable.take_out():
            self._folder.drop_adapter(number)

    # Confirmation

    def _enqueue_replicates(self) -> None:
        """Ask for the best trials again with fresh seeds; what is enqueued already is not doubled."""
        confirm = self._spec.sweep.confirm
        assert confirm is not None
        results, losses = self._store.results(), self._store.base_losses()
        assert losses is not None
        known = {(result.confirms, result.replicate) for result in results}
        chosen = finalists(
            results,
            self._identities.of_replicates,
            top=confirm.top,
            base_loss=losses[0],
            margin=self._spec.sweep.verdict.margin,
            cost=self._spec.sweep.verdict.cost,
        )
        ended = sum(result.confirms is not None and result.state != "running" for result in results)
        if left := len(chosen) * confirm.seeds - ended:
            self._display.retraining([result.number for result in chosen], left)
        seed = first_fresh_seed(results)
        for result in chosen:
            for replicate in range(1, confirm.seeds + 1):
                if (result.number, replicate) not in known:
                    self._store.enqueue_replicate(result.number, seed=seed + replicate - 1, replicate=replicate)
