"""Studies and trials in words, for someone who comes back to them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from lora_lab.analysis.verdict_words import STATE_WORDS
from lora_lab.analysis.wording import config_label, duration_text, measure_text, nats, value_text
from lora_lab.results.choice import configuration_yaml
from lora_lab.study.measures import MEASURES
from lora_lab.terminal.columns import GAP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from lora_lab.results.folder import RunFolder
    from lora_lab.results.overview import StudyOverview
    from lora_lab.results.results import Results
    from lora_lab.study.results import TrialResult


def print_studies(studies: Sequence[StudyOverview], console: Console) -> None:
    """One line for each study, and for those that cannot be read why."""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for head in ("study", "state", "trials", "changed", "recommended"):
        table.add_column(head, no_wrap=head not in ("recommended", "study"), overflow="fold")
    for study in studies:
        table.add_row(*map(Text, (study.name, _state(study), _trials(study), _age(study), _recommended(study))))
    console.print(table)
    for study in studies:
        if study.problem:
            console.print(f"{study.name}: {study.problem}", markup=False)


def _state(study: StudyOverview) -> str:
    return study.state if study.left_s is None else f"{study.state}, {duration_text(study.left_s)} left"


def _trials(study: StudyOverview) -> str:
    return "" if study.done is None else f"{study.done}/{study.total}"


def _age(study: StudyOverview) -> str:
    return f"{duration_text(max(0.0, time.time() - study.changed_at))} ago"


def _recommended(study: StudyOverview) -> str:
    found = study.results.findings if study.results else None
    if found is None or found.cheapest is None:
        return ""
    chosen, measure = found.cheapest, found.measure
    return f"trial {chosen.number}: {measure.label} {measure_text(measure, chosen.value)}, {chosen.label}"


def print_trial(results: Results, trial: TrialResult, folder: RunFolder, console: Console) -> None:
    """What became of one trial, its figures and settings, and where its files are."""

    def line(label: str, text: str) -> None:
        console.print(f"{label:<12} {text}", markup=False, soft_wrap=True)

    line("trial", f"{trial.number} of study {results.spec.study_name}")
    line("searched", config_label(trial.config, trial.params))
    line("state", STATE_WORDS[trial.state] + (f": {trial.reason}" if trial.reason else ""))
    if trial.confirms is not None:
        line("retrains", f"trial {trial.confirms}, with seed {trial.config.training.seed}")
    if trial.source is not None:
        line("trained by", f"trial {trial.source}")
    line("engine", trial.engine.name + (f": {trial.engine.reason}" if trial.engine.reason else ""))
    again = [one.number for one in results.trials if one.confirms == trial.number]
    if again:
        line("retrained as", ", ".join(map(str, again)))
    files = folder.files_of(trial.number).path
    adapter = folder.adapter_of(trial)
    line("files", f"{files if files.is_dir() else 'none kept'}{'' if adapter.is_dir() else ' (no adapter)'}")
    if trial.curve:
        console.print("\neval_loss by evaluation")
        console.print("  " + "  ".join(f"{number}: {nats(loss)}" for number, loss in sorted(trial.curve.items())))
    if trial.metrics:
        console.print("\nmeasured")
        for name, value in trial.metrics.items():
            measure = MEASURES.get(name)
            text = value_text(value) if measure is None else measure_text(measure, value)
            console.print(f"  {measure.label if measure else name:<36} {text}", markup=False)
    console.print("\nsettings, as a study file has them")
    sections = [text for text in configuration_yaml(trial).splitlines() if not text.startswith("#")]
    console.print("\n".join(sections), markup=False, soft_wrap=True)
