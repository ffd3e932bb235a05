"""What a study leaves behind: the table of trials, the verdict, the report, and the chosen adapters."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.audit import AuditNote, audit
from lora_lab.analysis.verdict import Findings, decide
from lora_lab.runner.example_losses import read_example_losses
from lora_lab.runner.selection import write_choice
from lora_lab.study.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_lab.analysis.verdict import Standing
    from lora_lab.figures.evidence import Evidence
    from lora_lab.runner.folder import RunFolder
    from lora_lab.search.store import StudyStore
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec


@dataclass(frozen=True, slots=True)
class Source:
    """Where the study came from, for the words "how to reproduce"."""

    path: Path
    command: str

    @property
    def digest(self) -> str:
        """The sha256 of the study file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@dataclass(frozen=True, slots=True)
class Results:
    """The trials of a study, and what they say."""

    spec: StudySpec
    trials: Sequence[TrialResult]
    findings: Findings
    notes: Sequence[AuditNote]
    base_forgetting: float | None


def read_results(spec: StudySpec, store: StudyStore, folder: RunFolder) -> Results:
    """Read the storage, and per-example losses where they are still there, and decide; nothing is trained or written.

    Raises:
        StorageError: the study has not begun, or cannot be read.
        CheckpointError: a file of losses is damaged.
    """
    losses = store.base_losses()
    if losses is None:
        raise StorageError(f"study {spec.study_name} has no results yet; run `python -m lora_lab.sweep` on it first")
    base_loss, base_forgetting = losses
    trials = store.results()
    examples, verdict = read_example_losses(folder, trials), spec.sweep.verdict
    findings = decide(trials, base_loss, verdict.margin, losses=examples, cost=verdict.cost)
    return Results(spec, trials, findings, audit(spec, findings, trials), base_forgetting)


def write_results(results: Results, folder: RunFolder, source: Source, device: str | None = None) -> Evidence:
    """Write the report, its short form, its key figures as PNG, and the chosen adapters with their configurations.

    Returns:
        What the report was made of.

    Raises:
        StorageError: the run folder cannot be written.
        CheckpointError: an adapter is damaged.
    """
    # scikit-learn, plotly and matplotlib take seconds to import: not before training.
    from lora_lab.figures.markdown import markdown_summary
    from lora_lab.figures.report import panels_of, write_report
    from lora_lab.figures.stills import write_stills
    from lora_lab.runner.evidence import gather

    evidence = gather(results, folder, source, device)
    panels = panels_of(evidence)
    write_report(folder.report, evidence, panels)
    write_stills(folder.figures, panels)
    folder.summary.write_text(markdown_summary(evidence, panels), encoding="utf-8")
    _choose(results, folder, results.findings.best, folder.best)
    _choose(results, folder, results.findings.cheapest, folder.recommended)
    return evidence


def _choose(results: Results, folder: RunFolder, standing: Standing | None, target: Path) -> None:
    if standing is None:
        return
    result = next(trial for trial in results.trials if trial.number == standing.number)
    adapter = folder.adapter_of(result)
    # Adapters far from the best are dropped as trials end; a margin that is widened later can choose such a trial.
    write_choice(target, result, adapter if adapter.is_dir() else None)
