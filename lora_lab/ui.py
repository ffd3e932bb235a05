"""`python -m lora_lab.ui studies/x.yaml`: browse the study's runs in MLflow."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import (
    Overrides,
    OwnMetrics,
    StudyFile,
    TrackingUri,
    errors_shown,
    run_command,
    run_own_metrics,
)

if TYPE_CHECKING:
    from pathlib import Path


def ui(
    study: StudyFile,
    overrides: Overrides = None,
    *,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    metrics: OwnMetrics = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Send MLflow what it lacks of this study, then serve its pages on 127.0.0.1 until Ctrl-C."""
    with errors_shown():
        run_own_metrics(metrics)
        command, store, pages = _prepare(study, overrides or [], port, tracking_uri)
    typer.echo(f"serving MLflow until Ctrl-C: {shlex.join(command)}")
    for label, path in pages.items():
        typer.echo(f"{label:<8} http://127.0.0.1:{port}{path}")
    os.execve(command[0], command, os.environ | store)  # noqa: S606 -- our own interpreter, with fixed arguments


def _prepare(
    study: Path, overrides: list[str], port: int, tracking_uri: str | None
) -> tuple[list[str], dict[str, str], dict[str, str]]:
    """The command that serves the pages, the environment variables that it needs besides, and the pages to open."""
    from lora_lab.common.errors import InputError
    from lora_lab.results.folder import RunFolder
    from lora_lab.study.file.loading import load_study
    from lora_lab.tracking.address import resolve_tracking_uri, ui_command, ui_environment
    from lora_lab.tracking.asking import study_pages
    from lora_lab.tracking.mirror import catch_up

    spec = load_study(study, overrides)
    folder = RunFolder.of(spec.study_name)
    if not folder.root.is_dir():
        raise InputError(f"{folder.root} does not exist; run `python -m lora_lab.sweep {study}` first")
    uri = resolve_tracking_uri(tracking_uri)
    note = catch_up(folder.root, uri)
    if note:
        typer.echo(note, err=True)
    environment = ui_environment(uri)
    pages = study_pages(uri, spec.study_name, spec.sweep.judged, tuple(spec.sweep.parameters))
    named = {"all": "/"} if pages is None else {"trials": pages[0], "charts": pages[1]}
    return ui_command(port), environment, named


if __name__ == "__main__":
    run_command(ui)
