"""What the commands share: their arguments, how errors are shown, and where a study's files are."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.common.activity import Interrupted
from lora_lab.common.errors import LoraLabError
from lora_lab.common.secrets import redact, redact_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# Nobody's training run should tell a third party about itself, and no progress bar belongs into our own view.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study file, such as studies/rank_alpha.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace a key of the study, such as training.seed=1; repeatable."),
]
OwnMetrics = Annotated[
    Path | None,
    typer.Option(
        "--metrics", metavar="FILE", help="A Python file with metrics of your own, for evaluation.metrics; it is run."
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(metavar="URI", help="MLflow store; by default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here."),
]

MemorySize = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE",
        help="Memory for the base and a pack: 20GB, or a share of what is free; 92% on a GPU, no limit on a CPU.",
    ),
]


def run_own_metrics(path: Path | None) -> list[str]:
    """Run the file that `--metrics` names, before a study is read that may name its functions.

    Returns:
        The words of a command line that does so again.

    Raises:
        InputError: it cannot be run, or what it has are no metrics.
    """
    if path is None:
        return []
    from lora_lab.study.own_metrics import add_own_metrics

    add_own_metrics(path)
    return ["--metrics", str(path)]


DISK_FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO})
"""What a disk refuses at any write, anywhere; other system errors would be mistakes of ours."""


@contextmanager
def errors_shown() -> Iterator[None]:
    """Print what the user can act on in one line, without a traceback, and exit with its code."""
    try:
        yield
    except LoraLabError as error:
        typer.echo(f"error: {redact(str(error))}", err=True)
        raise typer.Exit(error.exit_code) from None
    except OSError as error:
        if error.errno not in DISK_FAULTS:
            raise
        way_out = "free space or fix permissions, and run the same command again: it goes on where it stopped"
        typer.echo(f"error: {error.filename or 'a file of this study'}: {error.strerror}; {way_out}", err=True)
        raise typer.Exit(1) from None


def arguments(context: typer.Context) -> list[str]:
    """The words of this call after its verb, whether it began with `python -m lora_lab.sweep` or `lora-lab sweep`."""
    words = sys.argv[1:]
    return words if context.parent is None else words[1:]


def study_words(study: object, changes: Sequence[str], own_metrics: Sequence[str] = ()) -> list[str]:
    """The words of a command line that name a study: its file, `--set` for each change, and what ran `--metrics`."""
    return [str(study), *(word for change in changes for word in ("--set", change)), *own_metrics]


def command_text(verb: str, words: Sequence[str]) -> str:
    """A command line as it may be printed and kept: without the secrets among its words."""
    return shlex.join(["python", "-m", f"lora_lab.{verb}", *map(redact_address, words)])


def run_command(command: Callable[..., None]) -> None:
    """Run one command as a program of its own."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a program; what it did not expect ends it with a traceback, without secrets, and exit code 1."""
    try:
        app()
    except Interrupted:  # once more, while the program was leaving
        sys.exit(128 + signal.SIGINT)
    except Exception:  # noqa: BLE001 -- whatever it is, its message may hold an address with a password
        sys.stderr.write(redact(traceback.format_exc()))
        sys.exit(1)
