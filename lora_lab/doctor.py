"""`python -m lora_lab.doctor`: whether this machine is ready for a study, and what would be in its way."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import Overrides, OwnMetrics, TrackingUri, errors_shown, run_command, run_own_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.checkup.finding import Finding

StudyFile = Annotated[
    Path | None, typer.Argument(metavar="[STUDY]", help="A study file, whose database is looked at too.")
]


def doctor(
    study: StudyFile = None,
    overrides: Overrides = None,
    *,
    metrics: OwnMetrics = None,
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at packages, devices, memory, disk, the Hub, MLflow and a study's database; nothing is trained or kept.

    Exit codes: 0 nothing is in the way; 1 there is a problem.
    """
    with errors_shown():
        run_own_metrics(metrics)
        url = _storage(study, overrides or [])
        findings = []
        for finding in _findings(url, tracking_uri):
            findings.append(finding)
            if not as_json:
                _say(finding)
    bad = sum(finding.level == "problem" for finding in findings)
    if as_json:
        from lora_lab.terminal.strict_json import strict_json

        rows = [
            {"name": one.name, "level": one.level, "text": one.text, "values": dict(one.values)} for one in findings
        ]
        typer.echo(strict_json({"problems": bad, "findings": rows}, indent=2))
    else:
        typer.echo("ready" if not bad else f"{bad} problem{'s' if bad > 1 else ''} above")
    if bad:
        raise typer.Exit(1)


def _storage(study: Path | None, overrides: list[str]) -> str | None:
    """The URL of a study's own database server; None where its database is a file, which a sweep makes."""
    if study is None:
        return None
    from lora_lab.study.file.loading import load_study

    return load_study(study, overrides).storage


def _findings(url: str | None, tracking_uri: str | None) -> Iterator[Finding]:
    from lora_lab.checkup import machine

    here = Path.cwd()
    yield machine.python_and_packages()
    yield machine.extras()
    yield machine.processors()
    yield machine.memory()
    yield machine.disk(here)
    yield machine.clock(here)

    from lora_lab.checkup import devices, services

    yield devices.device()
    yield devices.quantization()
    yield services.hub()
    yield services.mlflow(tracking_uri)
    if url is not None:
        yield services.storage(url)


def _say(finding: Finding) -> None:
    from rich.console import Console

    from lora_lab.terminal.columns import say

    console = Console(file=sys.stdout, highlight=False)
    say(console, finding.text, first=f"{finding.level:<8} {finding.name:<13} ")


if __name__ == "__main__":
    run_command(doctor)
