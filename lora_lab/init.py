"""`python -m lora_lab.init --model M --data D`: a study file to begin with, for a base and data of one's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import errors_shown, run_command
from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from lora_lab.planning.proposal import Proposal


def init(
    model: Annotated[str, typer.Option(metavar="MODEL", help="The base: a folder or a Hub id.")],
    data: Annotated[str, typer.Option(metavar="DATA", help="Rows to train on: a file, a folder, or a Hub id.")],
    *,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", metavar="DATA", help="Rows to evaluate; by default a split or a share of DATA."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            "--gpu",
            metavar="NAME",
            help="The device it will run on, as of `plan`; by default the one here.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="By default a name made of the data's, here.")
    ] = None,
) -> None:
    """Look at a model and data, and write a study file with a search space that suits them and the memory.

    Nothing is asked, and nothing is loaded but the model's config and tokenizer and the data. The file is one to edit:
    every value has its reason beside it.
    """
    with errors_shown():
        path = _place(output, data)
        proposal, text = _propose(path, model, data, evaluation, device)
        _write(path, text)
        _tell(path, proposal)


def _place(output: Path | None, data: str) -> Path:
    """The file to write; its stem names the study.

    Raises:
        InputError: it exists, or cannot name a study.
    """
    from lora_lab.study.spec import STUDY_NAME

    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(data).name.split(".")[0]).strip("_-") or "my"
    path = output or Path(f"{stem}_study.yaml")
    if path.suffix not in {".yaml", ".yml"}:
        raise InputError(f"--output: must end with .yaml, but is {path}")
    if not STUDY_NAME.fullmatch(path.stem):
        raise InputError(
            f"--output: its name names the study, in letters, digits, '.', '_' and '-', but is {path.stem!r}"
        )
    if path.exists():
        raise InputError(f"{path} is there already, and may be a study that ran; give another with --output")
    if not path.parent.is_dir():
        raise InputError(f"--output: there is no folder {path.parent}; make it first")
    return path


def _propose(path: Path, model: str, data: str, evaluation: str | None, device: str | None) -> tuple[Proposal, str]:
    from lora_lab.planning.devices import device_named

    target = device_named(device) if device else None  # mistakes are told before anything slow is imported

    from rich.console import Console

    from lora_lab.planning.planner import local_device
    from lora_lab.planning.proposal import data_settings, propose
    from lora_lab.planning.proposal_file import file_text
    from lora_lab.results.folder import RunFolder

    with Console(stderr=True).status("looking") as line:
        cache = RunFolder.of(path.stem).data_cache
        rows = data_settings(data, evaluation, cache)
        proposal = propose(model, rows, target or local_device(), cache, line.update)
    return proposal, file_text(proposal, path.stem)


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def _tell(path: Path, proposal: Proposal) -> None:
    from lora_lab.planning.proposal_file import found_lines

    for line in [*found_lines(proposal), *(f"note: {note}" for note in proposal.rows.notes)]:
        typer.echo(line)
    typer.echo(f"wrote {path}; next:")
    typer.echo(f"  python -m lora_lab.plan {path}     # what it will need and cost")
    typer.echo(f"  python -m lora_lab.sweep {path} --trials 4     # a first look; the same without --trials goes on")


if __name__ == "__main__":
    run_command(init)
