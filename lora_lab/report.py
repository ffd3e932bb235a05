"""`python -m lora_lab.report studies/x.yaml`: build the report anew from the storage; nothing is trained."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import typer

from lora_lab.command_line import Overrides, StudyFile, arguments, errors_shown, run_command

if TYPE_CHECKING:
    from pathlib import Path


def report(context: typer.Context, study: StudyFile, overrides: Overrides = None) -> None:
    """Write runs/<study_name>/report.html and the chosen adapters anew, also while the study runs."""
    with errors_shown():
        path = _write(study, overrides or [], arguments(context))
    typer.echo(str(path))


def _write(study: Path, overrides: list[str], words: list[str]) -> Path:
    from lora_lab.runner.folder import RunFolder
    from lora_lab.runner.results import Source, read_results, write_results
    from lora_lab.runner.session import storage_url
    from lora_lab.search.store import open_store
    from lora_lab.study.loading import load_study

    spec = load_study(study, overrides)
    folder = RunFolder.of(spec.study_name)
    source = Source(study, shlex.join(["python", "-m", "lora_lab.sweep", *words]))
    with open_store(spec, storage_url(spec, folder), create=False) as store:
        write_results(read_results(spec, store), folder, source)
    return folder.report


if __name__ == "__main__":
    run_command(report)
