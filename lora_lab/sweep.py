"""`python -m lora_lab.sweep studies/x.yaml`: run a study, or go on with it; the same command does both."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import Overrides, StudyFile, TrackingUri, errors_shown, run_command

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.runner.stopping import StopRequest
    from lora_lab.study.spec import StudySpec


def sweep(
    study: StudyFile,
    overrides: Overrides = None,
    *,
    trials: Annotated[int | None, typer.Option(min=1, help="Number of trials; sets sweep.n_trials.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over under a new name; the old run stays.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the study stopped (the default).")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only the verdict and errors.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line, for scripts.")] = False,
    tracking_uri: TrackingUri = None,
) -> None:
    """Run a study to its end: sample, train in packs, prune, log to MLflow, decide.

    A study that was interrupted goes on where it stopped when the same command is given again.
    """
    from lora_lab.runner.stopping import StopRequest

    stop = StopRequest()
    stop.install()
    with errors_shown():
        if fresh and resume:
            from lora_lab.study.errors import InputError

            raise InputError("--fresh starts over and --resume goes on; give one of them")
        from lora_lab.study.loading import load_study

        changes = [*(overrides or []), *([f"sweep.n_trials={trials}"] if trials else [])]
        spec = load_study(study, changes)
        if fresh:
            spec = _renamed(spec)
        complete = _run(spec, study, stop, quiet=quiet, json=json, tracking_uri=tracking_uri)
    if not complete:
        typer.echo(f"To go on: {_resume_command(spec, fresh=fresh)}", err=True)
        raise typer.Exit(stop.exit_code)


def _renamed(spec: StudySpec) -> StudySpec:
    from lora_lab.runner.folder import unused_name

    return spec.model_copy(update={"study_name": unused_name(spec.study_name)})


def _run(spec: StudySpec, study: Path, stop: StopRequest, *, quiet: bool, json: bool, tracking_uri: str | None) -> bool:
    from lora_lab.runner.closing import say_results
    from lora_lab.runner.display import choose_display
    from lora_lab.runner.folder import RunFolder
    from lora_lab.runner.results import Source
    from lora_lab.runner.session import run_study

    folder = RunFolder.of(spec.study_name)
    display = choose_display(quiet=quiet, json=json, stream=sys.stdout)
    source = Source(study, shlex.join(["python", "-m", "lora_lab.sweep", *sys.argv[1:]]))
    outcome = run_study(spec, folder, source, display=display, stop=stop, tracking_uri=tracking_uri)
    if outcome.tracking_note:
        typer.echo(outcome.tracking_note, err=True)
    if outcome.results is not None:
        say_results(outcome.results, folder, display, tracking_uri, ran=outcome.ran)
    return outcome.complete


def _resume_command(spec: StudySpec, *, fresh: bool) -> str:
    """The command line that goes on with this study; a fresh one has its new name by now."""
    words = [word for word in sys.argv[1:] if word != "--fresh"]
    if fresh:
        words += ["--set", f"study_name={spec.study_name}"]
    return shlex.join(["python", "-m", "lora_lab.sweep", *words])


if __name__ == "__main__":
    run_command(sweep)
