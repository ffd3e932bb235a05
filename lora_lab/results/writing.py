"""Writes what a study leaves behind: the report, its short form and figures, and the chosen adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.common.files import write_durably
from lora_lab.results.choice import write_choice

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.analysis.findings import Standing
    from lora_lab.figures.evidence import Evidence
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results


def write_results(results: Results, folder: RunFolder, command: str, device: str | None = None) -> Evidence:
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
    from lora_lab.results.gather import gather

    evidence = gather(results, folder, command, device)
    panels = panels_of(evidence)
    write_report(folder.report, evidence, panels)
    write_stills(folder.figures, panels)
    write_durably(folder.summary, markdown_summary(evidence, panels))
    _choose(results, folder, results.findings.best, folder.best)
    _choose(results, folder, results.findings.cheapest, folder.recommended)
    return evidence


def _choose(results: Results, folder: RunFolder, standing: Standing | None, target: Path) -> None:
    if standing is None:
        return
    result = next(trial for trial in results.trials if trial.number == standing.number)
    adapter = folder.adapter_of(result)
    # huggingface_hub takes a while to import, too.
    from lora_lab.results.card import card

    # Adapters far from the best are dropped as trials end; a margin that is widened later can choose such a trial.
    text = card(results.spec.study_name, result, results.findings)
    write_choice(target, result, adapter if adapter.is_dir() else None, text)
