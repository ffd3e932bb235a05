"""The trials of a study as its storage has them, and the verdict on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.audit import AuditNote, audit, changed_on_the_way, unfinished
from lora_lab.analysis.forgetting import forgetting_trade
from lora_lab.analysis.on_test_rows import on_test_rows
from lora_lab.analysis.verdict import decide
from lora_lab.common.errors import StorageError, TrainingError
from lora_lab.results.example_losses import read_example_losses
from lora_lab.results.storage import storage_url
from lora_lab.search.store import open_store
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.analysis.findings import Findings
    from lora_lab.analysis.forgetting import ForgettingTrade
    from lora_lab.analysis.paired import ExampleLosses
    from lora_lab.results.folder import RunFolder
    from lora_lab.search.store import StudyStore
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec


@dataclass(frozen=True, slots=True)
class Results:
    """The trials of a study, and what they say."""

    spec: StudySpec
    trials: Sequence[TrialResult]
    findings: Findings
    losses: Mapping[int, ExampleLosses]
    """By trial number, what is judged on every evaluation example, as a loss; of those that comparisons rest on."""
    notes: Sequence[AuditNote]
    base_values: Mapping[str, float]
    """What was measured of the bare base: eval_loss, forgetting_loss where there is such text, its scores, and what it
    has on test rows."""

    def forgetting(self) -> ForgettingTrade | None:
        """What the gains cost on general text; None where forgetting was not measured."""
        verdict = self.spec.sweep.verdict
        in_nats = verdict.absolute_margin if self.findings.measure is EVAL_LOSS else None
        return forgetting_trade(self.trials, self.base_values[EVAL_LOSS.name], verdict.margin, in_nats)

    def on_test(self) -> str | None:
        """The verdict's choices on `data.test`, in a sentence; None where there are no such rows."""
        return on_test_rows(self.trials, self.findings, self.base_values)


def read_results(spec: StudySpec, store: StudyStore, folder: RunFolder, *, complete: bool | None = None) -> Results:
    """Read the storage, and per-example losses where they are still there, and decide; nothing is trained or written.

    Args:
        spec: The study.
        store: Its storage.
        folder: Where its files are.
        complete: Whether all that the study asks for was trained; by default, what the storage says.

    Raises:
        StorageError: the study has not begun, cannot be read, or lacks what is judged of the bare base.
        CheckpointError: a file of losses is damaged.
    """
    base = store.record.base_values()
    if base is None:
        raise StorageError(f"study {spec.study_name} has no results yet; run `python -m lora_lab.sweep` on it first")
    judged, verdict, trials = spec.sweep.judged, spec.sweep.verdict, store.results()
    examples = read_example_losses(folder, trials, judged)
    findings = decide(
        trials,
        store.record.base_value(),
        verdict.margin,
        judged,
        absolute_margin=verdict.absolute_margin,
        losses=examples,
        cost=verdict.cost,
    )
    looks = [*store.record.looks(), *([findings.best.runs] if findings.tested and findings.best else [])]
    notes = [
        *changed_on_the_way(verdict, store.record.declared_verdict(), looks),
        *audit(spec, findings, trials),
    ]
    if not (store.record.is_complete if complete is None else complete):
        notes = [unfinished(*store.budget()), *notes]
    return Results(spec, trials, findings, examples, notes, base)


def stored_results(spec: StudySpec, folder: RunFolder) -> Results:
    """Read what a study has by now, whoever works on it meanwhile; the classes of its rows are those it trained with.

    Raises:
        StorageError: the study has not begun, or cannot be read.
        CheckpointError: a file of losses is damaged.
    """
    with open_store(spec, storage_url(spec, folder), create=False) as store:
        stored = store.record.stored_spec() if spec.model.classifies else None
        known = spec if stored is None else spec.with_labels(stored.model.labels)
        return read_results(known, store, folder)


def check_finished(results: Results, *, complete: bool = True) -> None:
    """Check that a study has a trial that a verdict can rest on.

    Args:
        results: What there is at the end.
        complete: Whether all trials had their turn; otherwise the time was over.

    Raises:
        TrainingError: none finished; the first reason is told.
    """
    if results.findings.best is not None:
        return
    if not complete:
        raise TrainingError(
            f"no trial of study {results.spec.study_name} finished within --max-hours; the same command goes on"
        )
    first = next((trial for trial in results.trials if trial.reason), None)
    why = f" (trial {first.number} {first.state.replace('_', ' ')}: {first.reason.splitlines()[0]})" if first else ""
    raise TrainingError(
        f"no trial of study {results.spec.study_name} finished{why}; mend what its trials say, and begin it again "
        "with --fresh"
    )
