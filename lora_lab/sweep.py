"""`python -m lora_lab.sweep studies/x.yaml`: run a study, or go on with it; the same command does both."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import (
    MemorySize,
    Overrides,
    OwnMetrics,
    StudyFile,
    TrackingUri,
    arguments,
    command_text,
    errors_shown,
    run_command,
    run_own_metrics,
    study_words,
)
from lora_lab.common.activity import Interrupted
from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_lab.runner.options import RunOptions
    from lora_lab.runner.stopping import StopRequest
    from lora_lab.study.spec import StudySpec


def sweep(
    context: typer.Context,
    study: StudyFile,
    overrides: Overrides = None,
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials; sets sweep.n_trials.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over under a new name; the old run stays.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the study stopped (the default).")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the verdict and errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, for scripts.")] = False,
    checkpoint_interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="At most this much work of a trial is lost to a kill.")
    ] = 30.0,
    max_hours: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="HOURS", help="End within so many hours, with a verdict on what there is."),
    ] = None,
    metrics: OwnMetrics = None,
    memory_limit: MemorySize = None,
    tracking_uri: TrackingUri = None,
    storage_patience: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Wait so long for a storage that is away: by default 600 for a server, 60 for a file.",
        ),
    ] = None,
) -> None:
    """Run a study to its end: sample, train in packs, prune, log to MLflow, decide.

    A study that was interrupted goes on where it stopped when the same command is given again.

    Exit codes: 0 a verdict; 1 no trial finished, or the disk, the database or another process is in the way; 2 a
    mistake in the study, its data or the arguments; 130 and 143 interrupted by Ctrl-C and SIGTERM.
    """
    from lora_lab.runner.stopping import StopRequest

    stop = StopRequest()
    complete, new_name = False, None
    with errors_shown(), suppress(Interrupted):
        stop.install()
        if fresh and resume:
            raise InputError("--fresh starts over and --resume goes on; give one of them")
        own = run_own_metrics(metrics)
        spec = _load(study, overrides or [], trials, fresh=fresh)
        new_name = spec.study_name if fresh else None
        options = _options(
            memory_limit, tracking_uri, checkpoint_interval, max_hours, storage_patience, quiet=quiet, json=json
        )
        changes = [*(overrides or []), *([f"sweep.n_trials={trials}"] if trials else [])]
        words = study_words(study, changes if new_name is None else [*changes, f"study_name={new_name}"], own)
        more = _next_steps(words, options.tracking_uri, given=tracking_uri is not None)
        complete = _run(spec, command_text("sweep", arguments(context)), options, stop, more)
    if not complete:
        words = _resuming(arguments(context), new_name)
        typer.echo(f"To go on: {command_text('sweep', words)}", err=True)
        if stop.requested:
            raise typer.Exit(stop.exit_code)


def _load(study: Path, overrides: list[str], trials: int | None, *, fresh: bool) -> StudySpec:
    from lora_lab.results.folder import unused_name
    from lora_lab.study.file.loading import load_study

    spec = load_study(study, [*overrides, *([f"sweep.n_trials={trials}"] if trials else [])])
    return spec.model_copy(update={"study_name": unused_name(spec.study_name)}) if fresh else spec


def _options(
    memory: str | None,
    tracking_uri: str | None,
    interval_s: float,
    hours: float | None,
    patience_s: float | None,
    *,
    quiet: bool,
    json: bool,
) -> RunOptions:
    from lora_lab.runner.options import RunOptions
    from lora_lab.tracking.address import resolve_tracking_uri
    from lora_lab.training.memory.room import MemoryLimit

    return RunOptions(
        memory_limit=MemoryLimit.parse(memory),
        tracking_uri=resolve_tracking_uri(tracking_uri),
        checkpoint_interval_s=interval_s,
        storage_patience_s=patience_s,
        max_hours=hours,
        quiet=quiet,
        json=json,
    )


def _next_steps(study: list[str], tracking_uri: str, *, given: bool) -> dict[str, str]:
    """What to do with a study that has a verdict: command lines by what they are for."""
    from lora_lab.tracking.address import ui_words

    ui = ui_words(tracking_uri, command_text("ui", study), given=given)
    return {"MLflow": ui, "export": command_text("export", [*study, "--to", "all"])}


def _run(spec: StudySpec, command: str, options: RunOptions, stop: StopRequest, next_steps: Mapping[str, str]) -> bool:
    """Run the study and print its results; whether it is complete."""
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import check_finished
    from lora_lab.runner.session import run_study
    from lora_lab.terminal.closing import say_results
    from lora_lab.terminal.display import choose_display

    folder = RunFolder.of(spec.study_name)
    display = choose_display(quiet=options.quiet, json=options.json, stream=sys.stdout, status=folder.status)
    end = run_study(spec, folder, command, options, display=display, stop=stop)
    if end.tracking_note:
        typer.echo(end.tracking_note, err=True)
    if end.results is not None:
        say_results(end.results, folder, options.tracking_uri, json=options.json, ran=end.ran, next_steps=next_steps)
        check_finished(end.results, complete=end.complete)
    return end.complete


def _resuming(words: list[str], new_name: str | None) -> list[str]:
    """The words that go on with this study; one begun with `--fresh` has its new name by now."""
    if new_name is None:
        return words
    return [*(word for word in words if word != "--fresh"), "--set", f"study_name={new_name}"]


if __name__ == "__main__":
    run_command(sweep)
