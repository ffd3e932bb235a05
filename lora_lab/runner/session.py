"""One call of `sweep`: open the study, run or go on with it, and leave its results in its folder."""

from __future__ import annotations

import math
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lora_lab.common.activity import Activity, Interrupted
from lora_lab.common.errors import InputError, StorageAwayError
from lora_lab.common.lease import lease
from lora_lab.planning.answer_checks import check_answers, with_classes
from lora_lab.planning.target_checks import check_targets, target_examples
from lora_lab.results.results import Results, read_results
from lora_lab.results.storage import storage_url
from lora_lab.results.writing import write_results
from lora_lab.runner.coordinator import Coordinator
from lora_lab.runner.identities import Identities
from lora_lab.runner.time_limit import TimeLimit
from lora_lab.runner.watch import Watch
from lora_lab.search.patience import Patience
from lora_lab.search.store import StudyStore, open_store
from lora_lab.search.study_record import Home
from lora_lab.study.measures import EVAL_LOSS
from lora_lab.study.resume import compare_contents, compare_for_resume
from lora_lab.terminal.messages import Note, SessionOver, StudyBegan
from lora_lab.terminal.progress import base_text
from lora_lab.tracking.describe import study_started
from lora_lab.tracking.journal import JOURNAL_NAME, Journal, journal_id
from lora_lab.tracking.mirror import MlflowMirror
from lora_lab.tracking.records import Attached, StudyEnded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.results.folder import RunFolder
    from lora_lab.runner.executor import Backend, Prepared
    from lora_lab.runner.options import RunOptions
    from lora_lab.runner.stopping import StopRequest
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec
    from lora_lab.terminal.display import Display


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """How one call of `sweep` ended."""

    complete: bool
    """False when it was stopped, or its time was over; it then has results only in the second case."""
    ran: bool
    """False when the study had been complete before."""
    results: Results | None
    tracking_note: str | None
    """One line to show where MLflow lacks something."""


def run_study(
    spec: StudySpec,
    folder: RunFolder,
    command: str,
    options: RunOptions,
    *,
    display: Display,
    stop: StopRequest,
    backend: Backend | None = None,
) -> SessionEnd:
    """Run a study to its end, or until `stop`; a study that is complete already is only read.

    Args:
        spec: The study.
        folder: Where its files are.
        command: The command line that repeats it, for the report; it holds no secrets.
        options: How it is run on this machine.
        display: What the user sees.
        stop: Set by Ctrl-C and SIGTERM.
        backend: Where it trains; by default in this process.

    Raises:
        InputError: something in the study cannot be right; nothing was trained.
        StudyLockedError: another coordinator works on it.
        StorageError: the run folder or the database cannot be used.
        Interrupted: it was stopped where no trial trained; the same call goes on.
    """
    limit = TimeLimit(options.max_hours)
    patience = Patience(options.storage_patience_s, lambda text: display.tell(Note(text)), lambda: stop.requested)
    folder.make()
    spec = with_classes(spec, folder.data_cache)
    with ExitStack() as stack:
        stack.enter_context(lease(folder.lease, folder.root))
        # The lock of the run folder is enough for a database in it.
        opened = open_store(spec, storage_url(spec, folder), lease=spec.storage is not None, patience=patience)
        store = stack.enter_context(opened)
        _settle(spec, store, folder)
        before = store.record.stored_spec() if store.record.has_trials else None
        if before is not None:
            compare_for_resume(before, spec)
        if store.record.is_complete and folder.best.exists():
            return SessionEnd(complete=True, ran=False, results=read_results(spec, store, folder), tracking_note=None)
        display.tell(Note(f"loading {spec.model.model_name_or_path} and the data"))
        with stop.deferred():
            watch = stack.enter_context(Watch(display, stop))
        watch.beat(Activity(f"loading {spec.model.model_name_or_path}"))
        if backend is None:
            from lora_lab.runner.in_process import in_process  # imports torch: not for a complete study

            backend = in_process(spec, folder, options, watch.beat)
        stack.callback(backend.executor.close, save=False)
        mirror = MlflowMirror(folder.root, options.tracking_uri)
        return _Session(spec, folder, command, store, backend, mirror, display, stop, limit, watch).run()


def _home(folder: RunFolder) -> Home:
    return Home(journal_id(folder.root), socket.gethostname(), str(folder.root.resolve()))


def _settle(spec: StudySpec, store: StudyStore, folder: RunFolder) -> None:
    """Check that the trials' files are in this run folder, or nowhere any more; keep that they are here.

    Raises:
        InputError: they are in another one.
    """
    if spec.storage is None:
        return  # the database is one of those files
    kept, here = store.record.home(), _home(folder)
    if kept is not None and store.record.has_trials and kept.journal != here.journal:
        is_lost = kept.host == here.host and not (Path(kept.folder) / JOURNAL_NAME).exists()
        if not is_lost:
            raise InputError(
                f"study {spec.study_name} has its checkpoints and adapters in {kept}, but this run folder is {here}; "
                "go on there, move that folder here, or begin a new study with --fresh"
            )
    store.record.keep_home(here)


@dataclass(frozen=True, slots=True)
class _Session:
    """The parts of one call that trains, and the order in which they are opened and closed."""

    spec: StudySpec
    folder: RunFolder
    command: str
    store: StudyStore
    backend: Backend
    mirror: MlflowMirror
    display: Display
    stop: StopRequest
    limit: TimeLimit
    watch: Watch

    def run(self) -> SessionEnd:
        """Train, and write what the study leaves behind."""
        executor = self.backend.executor
        example = target_examples(self.spec)[0]
        notes = check_targets(self.spec, self.backend.linears)
        check_answers(self.spec, self.folder.data_cache)
        prepared = executor.prepare(example)
        if self.store.record.has_trials:
            compare_contents(self.store.record.contents(), prepared.contents, self.spec.study_name)
        with Journal(self.folder.root) as journal:
            done, total = self.store.budget()
            sweep = self.spec.sweep
            self.display.tell(StudyBegan(self.spec.study_name, total, sweep.fixed_pack_size, done, sweep.judged))
            try:
                for note in (*notes, *prepared.notes):
                    self.display.tell(Note(note))
                self._keep(prepared, example)
                tags = {"lora_lab.device": prepared.device}
                journal.append(study_started(self.spec, datasets=prepared.datasets, tags=tags))
                self.mirror.start()
                return self._coordinate(journal, prepared.device)
            finally:
                self.display.tell(SessionOver())

    def _keep(self, prepared: Prepared, example: TrialConfig) -> None:
        """Store what the study is, last of all before its first trial: until here, a mistake in it costs nothing."""
        if not self.store.record.has_trials or self.store.record.base_values() is None:
            eval_loss, forgetting_loss = self.backend.executor.base_losses(example)
            _check_base_loss("data.eval", eval_loss)
            _check_base_loss("data.forgetting", forgetting_loss)
            scores = self.backend.executor.base_scores(example)
            values = {EVAL_LOSS.name: eval_loss, "forgetting_loss": forgetting_loss, **scores}
            self.store.record.keep_base_values(values)
        self.store.record.base_value()  # what is judged must be known of the base
        self.display.tell(Note(base_text(self.store.record.base_values() or {})))
        self.store.record.keep_contents(prepared.contents)
        if self.spec.storage is not None:
            self.store.record.keep_home(_home(self.folder))  # there is a journal by now
        self.store.record.replace_spec(self.spec)

    def _coordinate(self, journal: Journal, device: str) -> SessionEnd:
        coordinator = Coordinator(
            self.spec,
            store=self.store,
            executor=self.backend.executor,
            journal=journal,
            display=self.display,
            folder=self.folder,
            identities=Identities(self.backend.linears),
            stop=self.stop,
            limit=self.limit,
            tracking_status=lambda: f"MLflow {self.mirror.status}",
            beat=self.watch.beat,
        )
        try:
            with self.stop.deferred(), self.watch.until(lambda: self.limit.passed):
                complete = coordinator.run()
        except StorageAwayError as error:
            self.display.tell(Note(str(error)))
            complete = False
        except Interrupted:  # asked twice: what was written by now is enough to go on
            raise
        except BaseException:
            journal.append(StudyEnded(state="failed"))
            self.mirror.close(timeout_s=5)
            raise
        self.display.tell(SessionOver(verdict_follows=not self.stop.requested))
        if self.stop.requested:
            return self._interrupted(journal)
        try:
            return self._conclude(journal, device, complete=complete)
        except Interrupted:
            return self._interrupted(journal)

    def _interrupted(self, journal: Journal) -> SessionEnd:
        journal.append(StudyEnded(state="interrupted"))
        return SessionEnd(complete=False, ran=True, results=None, tracking_note=self.mirror.close(timeout_s=5))

    def _conclude(self, journal: Journal, device: str, *, complete: bool) -> SessionEnd:
        """Write what the study leaves; where it was interrupted by its time limit, of what there is."""
        self.watch.beat(Activity("writing the report"))
        results = read_results(self.spec, self.store, self.folder, complete=complete)
        write_results(results, self.folder, self.command, device)
        if results.findings.tested and results.findings.best is not None:
            self.store.record.keep_look(results.findings.best.runs)
        if complete:
            self.store.record.mark_complete()
        journal.append(*_attachments(results, self.folder), _ended(results, "complete" if complete else "interrupted"))
        return SessionEnd(complete=complete, ran=True, results=results, tracking_note=self.mirror.close(timeout_s=120))


def _check_base_loss(key: str, loss: float | None) -> None:
    """Every gain is measured against the bare base: without its loss the study could only end without a verdict."""
    if loss is not None and not math.isfinite(loss):
        raise InputError(
            f"{key}: the loss of the bare base on it must be finite, but is {loss}; the weights are damaged, or "
            "overflow in this dtype (model.dtype: float32 would show that)"
        )


def _attachments(results: Results, folder: RunFolder) -> Iterator[Attached]:
    yield Attached(number=None, path=folder.report)
    yield Attached(number=None, path=folder.summary)
    if folder.figures.is_dir():  # where no trial finished there is nothing to draw
        yield Attached(number=None, path=folder.figures, artifact_path="figures")
    chosen = {
        standing.number: place
        for standing, place in (
            (results.findings.cheapest, folder.recommended),
            (results.findings.best, folder.best),
        )
        if standing is not None
    }
    for number, place in chosen.items():
        if (place / "adapter").is_dir():
            yield Attached(number=number, path=place / "adapter", artifact_path="adapter")
        yield Attached(number=number, path=place / "config.yaml")


def _ended(results: Results, state: Literal["complete", "interrupted"]) -> StudyEnded:
    best, cheapest = results.findings.best, results.findings.cheapest
    judged = results.findings.measure
    metrics = {
        f"base_{judged.name}": results.findings.base_value,
        f"margin_{judged.distance_unit}": results.findings.margin,
    }
    tags = {}
    if best is not None and cheapest is not None:
        metrics |= {f"best_{judged.name}": best.value, f"recommended_{judged.name}": cheapest.value}
        tags = {"lora_lab.best": str(best.number), "lora_lab.recommended": str(cheapest.number)}
    return StudyEnded(state=state, metrics=metrics, tags=tags)
