"""The loop of a sweep: ask the search, admit to the pack, train, tell.

A trial that another one's training contains (`sharing`) is told with the figures there, or begins where it parts from
it, in the folder that the engine made for it.

The order of writes makes a kill at any moment harmless. A trial's files come first, then the search's storage
(the truth), then the journal from which MLflow is fed; what is missing in the journal after a kill is added
from the storage when the study is opened again.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from lora_lab.common.errors import CheckpointError, InputError, TrainingError
from lora_lab.runner.announcer import Books
from lora_lab.runner.finalists import choosable_no_more, finalists, first_fresh_seed
from lora_lab.runner.handover import Handover
from lora_lab.runner.sharing import Sharing
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
    from lora_lab.study.results import TrialState
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
        self._sharing = Sharing(spec, executor.linears)
        self._books = Books(journal, display, folder, self._sharing)
        self._waiting: deque[Asked] = deque()
        """Trials that were asked for and have no place in the pack yet."""
        self._handover = Handover(store, folder, self._sharing, self._books, self._waiting)

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
        for result in results:
            self._sharing.remember(result)
            if result.source is not None:
                self._folder.adopt_shorter(result.source, result.config.training.num_train_epochs, result.number)
            if result.state != "running":
                self._folder.drop_checkpoint(result.number)  # a kill may have come just before
        for asked in self._store.running():
            if asked.branched_from is not None:
                epochs = asked.config.training.num_train_epochs
                self._folder.adopt_shorter(asked.branched_from, epochs, asked.number)
            self._waiting.append(asked)
        # The ends that a kill kept out of the journal after they were told to the storage.
        for result in results:
            if result.state != "running" and result.number not in self._journal.ended_trials:
                self._books.record(result, self._store.result)

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
        for asked in self._waiting:
            if self._executor.accepts(asked.config):
                self._waiting.remove(asked)
                return asked
        while self._executor.has_room and len(self._waiting) < LOOK_AHEAD:
            asked_next = self._store.ask(self._sharing.reserved)
            if asked_next is None or self._executor.accepts(asked_next.config):
                return asked_next
            self._waiting.append(asked_next)
        return None

    def _start(self, asked: Asked) -> None:
        number, config = asked.number, asked.config
        try:
            origin = self._sharing.origin(asked)
            if origin is not None:
                self._handover.follow(asked, origin)
                return
            self._executor.submit(number, config, self._sharing.begin(asked))
        except (InputError, CheckpointError, TrainingError) as error:
            self._books.announce(asked, engine_for(config))
            self._end(Failed(number=number, step=0, epoch=0.0, reason=str(error)))
            return
        self._books.announce(asked, self._executor.engine_of(number, config))

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
                self._handover.give(event, training)
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
                self._close(event.number, "complete", event, metrics=dict(event.metrics))
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
        self._handover.release(number, has_value=state in FINISHED_WITH_VALUE)

    # Files

    def _save_checkpoints(self) -> None:
        started = time.monotonic()
        self._executor.save_checkpoints()
        took = time.monotonic() - started
        self._next_checkpoint = time.monotonic() + max(self._interval_s, CHECKPOINT_SHARE * took)

    def _tidy_adapters(self) -> None:
        """Drop the adapters of trials that can no longer be chosen: neither near the best nor among the first three.

        The bound only falls while the best loss does, so what is dropped would stay out.
        """
        if self._spec.sweep.multi_objective or self._spec.sweep.confirm is not None:
            return  # several are best, or the retrainings will say which is
        losses = self._store.base_losses()
        assert losses is not None
        for number in choosable_no_more(self._store.results(), losses[0], self._spec.sweep.verdict.margin):
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
            lambda config: self._sharing.identity(config, any_seed=True),
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
