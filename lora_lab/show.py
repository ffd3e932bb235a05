"""`python -m lora_lab.show studies/x.yaml`: what a study has found by now, or one trial of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import (
    Overrides,
    OwnMetrics,
    command_text,
    errors_shown,
    run_command,
    run_own_metrics,
    study_words,
)
from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.study.results import TrialResult
    from lora_lab.study.spec import StudySpec

Study = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of a study under runs/.")]


def show(
    study: Study,
    overrides: Overrides = None,
    *,
    trial: Annotated[int | None, typer.Option(min=0, metavar="N", help="Only the trial of this number.")] = None,
    metrics: OwnMetrics = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every trial.")] = False,
) -> None:
    """Show a study's best trials and its verdict, also while it runs; nothing is trained or written."""
    with errors_shown():
        own = run_own_metrics(metrics)
        results, folder = _read(study, overrides or [])
        chosen = None if trial is None else _trial(results, trial)
    if as_json:
        from lora_lab.results.values import study_values, trial_values
        from lora_lab.terminal.strict_json import strict_json

        values = study_values(results, folder) if chosen is None else trial_values(chosen, folder)
        typer.echo(strict_json(values, indent=2))
        return
    from rich.console import Console

    from lora_lab.terminal.closing import print_results
    from lora_lab.terminal.study_text import print_trial

    console = Console(file=sys.stdout, highlight=False)
    if chosen is None:
        words = study_words(study, overrides or [], own)
        one = {"one trial": command_text("show", [*words, "--trial", "N"])}
        print_results(results, folder, one, console)
    else:
        print_trial(results, chosen, folder, console)


def _read(study: str, overrides: list[str]) -> tuple[Results, RunFolder]:
    from lora_lab.results.folder import RunFolder

    spec = _spec(study, overrides)
    from lora_lab.results.results import stored_results

    folder = RunFolder.of(spec.study_name)
    return stored_results(spec, folder), folder


def _spec(study: str, overrides: list[str]) -> StudySpec:
    """The study of a file, or as the database in the run folder of this name has it."""
    from lora_lab.results.folder import RUNS, RunFolder
    from lora_lab.search.known_studies import stored_spec
    from lora_lab.search.urls import sqlite_url
    from lora_lab.study.file.loading import load_study
    from lora_lab.study.spec import STUDY_NAME

    path = Path(study)
    if path.suffix in {".yaml", ".yml"} or path.is_file() or not STUDY_NAME.fullmatch(study):
        return load_study(path, overrides)
    folder = RunFolder.of(study)
    if not folder.root.is_dir():
        known = sorted(path.parent.name for path in RUNS.glob("*/study.db"))
        there = f"there are {', '.join(known)}" if known else "there is none"
        raise InputError(f"STUDY: neither a file nor a study under {RUNS}/ is called {study}; {there}")
    if overrides:
        raise InputError("--set changes a study file; give that file instead of the study's name")
    if not folder.database.is_file():
        raise InputError(f"the trials of study {study} are in a database elsewhere; give its study file instead")
    return stored_spec(sqlite_url(folder.database), study)


def _trial(results: Results, number: int) -> TrialResult:
    found = next((trial for trial in results.trials if trial.number == number), None)
    if found is None:
        numbers = [trial.number for trial in results.trials]
        there = f"numbers are {numbers[0]} to {numbers[-1]}" if numbers else "it has none yet"
        raise InputError(f"--trial: study {results.spec.study_name} has no trial {number}; {there}")
    return found


if __name__ == "__main__":
    run_command(show)
