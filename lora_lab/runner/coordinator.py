"""The loop of a sweep: ask the search, admit to the pack, train, tell.

The order of writes makes a kill at any moment harmless. A trial's files come first, then the search's storage
(the truth), then the journal from which MLflow is fed; what is missing in the journal after a kill is added
from the storage when the study is opened again.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import search_trials
from lora_lab.study.errors import CheckpointError, InputError, TrainingError
from lora_lab.study.events import Diverged, Evaluated, Failed, Finished, OutOfMemory, TrialEvent
from lora_lab.study.identity import trial_identity
from lora_lab.study.targets import resolve_targets
from lora_lab.tracking.describe import trial_started
from lora_lab.tracking.records import TrialEnded

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.runner.display import Display
    from lora_lab.runner.executor import Executor
    from lora_lab.runner.folder import RunFolder
    from lora_lab.runner.stopping import StopRequest
    from lora_lab.search.store import Asked, StudyStore
    from lora_lab.study.results import TrialResult, TrialState
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.tracking.journal import Journal

ENGINE = "packed"
FAILURES: dict[type[TrialEvent], TrialState] = {
    Diverged: "diverged",
    OutOfMemory: "out_of_memory",
    Failed: "failed",
}
CHECKPOINT_SHARE = 50
"""The next checkpoint comes at least this many times the newest one's duration later: at most 2% of the time."""
KEPT_ADAPTERS = 3
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
        self._owners: dict[str, int] = {}
        """Which trial trains, or trained, each distinct configuration."""
        self._ended: set[int] = set()
        self._followers: dict[int, list[int]] = {}
        """Trials that wait for the outcome of an equivalent one."""
        self._waiting: deque[Asked] = deque()
        """Trials that were asked for and have no place in the pack yet."""

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
            if result.state != "running" and result.source is None:
                self._owners.setdefault(self._identity(result.config), result.number)
            if result.state != "running":
                self._ended.add(result.number)
                self._folder.drop_checkpoint(result.number)  # a kill may have come just before
        self._waiting.extend(self._store.running())
        self._complete_journal(results)

    def _complete_journal(self, results: list[TrialResult]) -> None:
        """Add the ends that a kill kept out of the journal after they were told to the storage."""
        for result in results:
            if result.state != "running" and result.number not in self._journal.ended_trials:
                self._journal.append(
                    trial_started(result.number, result.config, engine=ENGINE),
                    TrialEnded(
                        number=result.number,
                        state=result.state,
                        step=int(result.metrics.get("steps", 0)),
                        reason=result.reason,
                        metrics=result.metrics,
                    ),
                )

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
            asked_next = self._store.ask()
            if asked_next is None or self._executor.accepts(asked_next.config):
                return asked_next
            self._waiting.append(asked_next)
        return None

    def _start(self, asked: Asked) -> None:
        number, config = asked.number, asked.config
        try:
            source = self._owners.setdefault(self._identity(config), number)
            if source != number:
                self._follow(number, source)
                return
            self._executor.submit(number, config)
        except (InputError, CheckpointError, TrainingError) as error:
            self._announce(asked)
            self._end(Failed(number=number, step=0, epoch=0.0, reason=str(error)))
            return
        self._announce(asked)

    def _announce(self, asked: Asked) -> None:
        self._journal.append(trial_started(asked.number, asked.config, engine=ENGINE, tags=self._tags(asked)))
        self._display.trial_started(asked.number, asked.config)

    def _tags(self, asked: Asked) -> dict[str, str]:
        tags = {"config_id": self._identity(asked.config, any_seed=True)[:12]}
        if asked.confirms is not None:
            tags |= {"confirms": str(asked.confirms), "replicate": str(asked.replicate)}
        return tags

    def _identity(self, config: TrialConfig, *, any_seed: bool = False) -> str:
        """The hash of what is trained; with `any_seed`, equal for replicates."""
        modules = resolve_targets(self._executor.linears(config.model), config.lora)
        if any_seed:
            config = config.model_copy(update={"training": config.training.model_copy(update={"seed": 0})})
        return trial_identity(config, modules)

    # What trials tell

    def _handle(self, events: list[TrialEvent]) -> None:
        """Report everything first, then prune: trials of one step are compared with each other."""
        self._journal.append(*events)
        for event in events:
            self._display.event(event)
            if isinstance(event, Evaluated):
                self._store.report(event.number, event.evaluation, event.eval_loss)
        # Asked for trials that end here too: it makes their values count on the rungs.
        rejected = {e.number for e in events if isinstance(e, Evaluated) and self._store.should_prune(e.number)}
        ending = {event.number for event in events if isinstance(event, (Finished, *FAILURES))}
        for event in events:
            if event.number in ending:
                if not isinstance(event, Evaluated):
                    self._end(event)
            elif event.number in rejected and isinstance(event, Evaluated):
                self._prune(event)

    def _end(self, event: TrialEvent) -> None:
        """Tell the storage how a trial ended; other events pass."""
        match event:
            case Finished():
                self._store.finish(event.number, event.metrics)
                self._close(event.number, "complete", event, metrics=dict(event.metrics))
                self._tidy_adapters()
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
        self._ended.add(number)
        for follower in self._followers.pop(number, []):
            self._share(follower, number)

    def _follow(self, number: int, source: int) -> None:
        """Let an equivalent configuration have the source's outcome, now or when it is there."""
        if source in self._ended:
            self._share(number, source)
        else:
            self._followers.setdefault(source, []).append(number)

    def _share(self, number: int, source: int) -> None:
        self._store.share(number, source)
        result = self._store.result(number)
        self._journal.append(
            trial_started(number, result.config, engine=ENGINE, tags={"shares": str(source)}),
            TrialEnded(
                number=number,
                state=result.state,
                step=int(result.metrics.get("steps", 0)),
                reason=f"the same training as trial {source}",
                metrics=result.metrics,
            ),
        )
        self._ended.add(number)
        self._display.trial_ended(number, result.state, result.eval_loss, f"the same training as trial {source}")

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
        ranked = sorted(
            (result.eval_loss, result.number)
            for result in search_trials(self._store.results())
            if result.state == "complete" and result.eval_loss is not None
        )
        if len(ranked) <= KEPT_ADAPTERS:
            return
        losses = self._store.base_losses()
        assert losses is not None
        best, base = ranked[0][0], losses[0]
        bound = best + self._spec.sweep.verdict.margin * max(0.0, base - best)
        for loss, number in ranked[KEPT_ADAPTERS:]:
            if loss > bound:
                self._folder.drop_adapter(number)

    # Confirmation

    def _enqueue_replicates(self) -> None:
        """Ask for the best trials again with fresh seeds; what is enqueued already is not doubled."""
        confirm = self._spec.sweep.confirm
        assert confirm is not None
        results = self._store.results()
        known = {(result.confirms, result.replicate) for result in results}
        by_number = {result.number: result for result in results}
        ranked = sorted(
            (result.eval_loss, result.number)
            for result in search_trials(results)
            if result.state == "complete" and result.eval_loss is not None
        )
        for _, number in ranked[: confirm.top]:
            seed = by_number[number].config.training.seed
            for replicate in range(1, confirm.seeds + 1):
                if (number, replicate) not in known:
                    self._store.enqueue_replicate(number, seed=seed + replicate, replicate=replicate)
