"""`python -m lora_lab.list`: the studies whose run folders lie here."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_lab.command_line import errors_shown, run_command

if TYPE_CHECKING:
    from lora_lab.results.overview import StudyOverview


def list_studies(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the studies under runs/: how far each is, and what it recommends; nothing is trained or written."""
    with errors_shown():
        from lora_lab.results.overview import studies_here

        studies = studies_here()
    if as_json:
        from lora_lab.terminal.strict_json import strict_json

        typer.echo(strict_json({"studies": [_values(study) for study in studies]}, indent=2))
        return
    if not studies:
        typer.echo("no studies under runs/ here; run `python -m lora_lab.sweep` with a study file")
        return
    from rich.console import Console

    from lora_lab.terminal.study_text import print_studies

    print_studies(studies, Console(file=sys.stdout, highlight=False))


def _values(study: StudyOverview) -> dict[str, Any]:
    from lora_lab.results.values import verdict_values

    return {
        "study_name": study.name,
        "state": study.state,
        "changed_at": datetime.fromtimestamp(study.changed_at, UTC).isoformat(timespec="seconds"),
        "done": study.done,
        "total_trials": study.total,
        "left_s": study.left_s,
        "verdict": verdict_values(study.results) if study.results else None,
        "problem": study.problem or None,
    }


if __name__ == "__main__":
    run_command(list_studies)
