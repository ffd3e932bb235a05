"""`python -m lora_lab.sweep studies/x.yaml`: run a study, or go on with it; the same command does both."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import MemoryLimit, Overrides, StudyFile, TrackingUri, arguments, errors_shown, run_command

if TYPE_CHECKING:
    from lora_lab.runner.stopping import StopRequest
    from lora_lab.study.spec import StudySpec
    from lora_lab.terminal.display import Display


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
    memory_limit: MemoryLimit = None,
    tracking_uri: TrackingUri = None,
) -> None:
    """Run a study to its end: sample, train in packs, prune, log to MLflow, decide.

    A study that was interrupted goes on where it stopped when the same command is given again.

    Exit codes: 0 a verdict; 1 no trial finished, or the disk, the database or another process is in the way; 2 a
    mistake in the study, its data or the arguments; 130 and 143 interrupted by Ctrl-C and SIGTERM.
    """
    from lora_lab.runner.stopping import StopRequest

    stop = StopRequest()
    stop.install()
    with errors_shown():
        if fresh and resume:
            from lora_lab.common.errors import InputError

            raise InputError("--fresh starts over and --resume goes on; give one of them")
        from lora_lab.study.file.loading import load_study
        from lora_lab.training.memory import room

        room.memory_limit(memory_limit, None)  # a mistake in it is told before anything is loaded
        changes = [*(overrides or []), *([f"sweep.n_trials={trials}"] if trials else [])]
        spec = load_study(study, changes)
        if fresh:
            spec = _renamed(spec)
        from lora_lab.terminal.display import choose_display  # below the loading, so that a mistake is told at once

        display = choose_display(quiet=quiet, json=json, stream=sys.stdout)
        complete = _run(
            spec,
            _command(arguments(context)),
            display,
            stop,
            memory_limit=memory_limit,
            tracking_uri=tracking_uri,
            checkpoint_interval_s=checkpoint_interval,
        )
    if not complete:
        words = _resuming(arguments(context), spec.study_name if fresh else None)
        typer.echo(f"To go on: {_command(words)}", err=True)
        raise typer.Exit(stop.exit_code)


def _renamed(spec: StudySpec) -> StudySpec:
    from lora_lab.results.folder import unused_name

    return spec.model_copy(update={"study_name": unused_name(spec.study_name)})


def _run(
    spec: StudySpec,
    command: str,
    display: Display,
    stop: StopRequest,
    *,
    memory_limit: str | None,
    tracking_uri: str | None,
    checkpoint_interval_s: float,
) -> bool:
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import check_finished
    from lora_lab.runner.session import run_study
    from lora_lab.terminal.closing import say_results

    folder = RunFolder.of(spec.study_name)
    outcome = run_study(
        spec,
        folder,
        command,
        display=display,
        stop=stop,
        memory_limit=memory_limit,
        tracking_uri=tracking_uri,
        checkpoint_interval_s=checkpoint_interval_s,
    )
    if outcome.tracking_note:
        typer.echo(outcome.tracking_note, err=True)
    if outcome.results is not None:
        say_results(outcome.results, folder, display, tracking_uri, ran=outcome.ran)
        check_finished(outcome.results)
    return outcome.complete


def _command(words: list[str]) -> str:
    return shlex.join(["python", "-m", "lora_lab.sweep", *words])


def _resuming(words: list[str], new_name: str | None) -> list[str]:
    """The words that go on with this study; one begun with `--fresh` has its new name by now."""
    if new_name is None:
        return words
    return [*(word for word in words if word != "--fresh"), "--set", f"study_name={new_name}"]


if __name__ == "__main__":
    run_command(sweep)
