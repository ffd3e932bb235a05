"""`python -m lora_lab.report studies/x.yaml`: build the report anew from the storage; nothing is trained."""

from __future__ import annotations

import hashlib
import json
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.figures.evidence import Evidence

LONGEST_NAME = 150
"""Of a comparison's file; longer ones end in a hash."""

Studies = Annotated[
    list[Path],
    typer.Argument(metavar="STUDY...", help="Study files, such as studies/rank_alpha.yaml; several are compared."),
]


def report(
    studies: Studies,
    overrides: Overrides = None,
    *,
    metrics: OwnMetrics = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write runs/<study_name>/report.html and the chosen adapters anew, also while the study runs.

    Of several studies it also writes a page that compares them: runs/comparison-<study names>.html.
    """
    with errors_shown():
        written = []
        for path in _write(studies, overrides or [], run_own_metrics(metrics)):
            written.append(str(path))
            if not as_json:
                typer.echo(written[-1])
        if as_json:
            typer.echo(json.dumps({"written": written}, indent=2))


def _write(studies: Sequence[Path], overrides: list[str], own: list[str]) -> Iterator[Path]:
    from lora_lab.figures.studies import write_comparison
    from lora_lab.results.folder import RUNS, RunFolder

    written = []
    for study in studies:
        evidence = _write_one(study, overrides, own)
        written.append(evidence)
        yield RunFolder.of(evidence.spec.study_name).report
    if len(written) > 1:
        page = RUNS / _comparison_name([evidence.spec.study_name for evidence in written])
        write_comparison(page, written)
        yield page


def _write_one(study: Path, overrides: list[str], own: list[str]) -> Evidence:
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import stored_results
    from lora_lab.results.writing import write_results
    from lora_lab.study.file.loading import load_study

    spec = load_study(study, overrides)
    folder = RunFolder.of(spec.study_name)
    command = command_text("sweep", study_words(study, overrides, own))
    return write_results(stored_results(spec, folder), folder, command)


def _comparison_name(names: Sequence[str]) -> str:
    """A file name that tells comparisons of other studies apart and is not too long for a file system."""
    joined = "-".join(names)
    if len(joined) > LONGEST_NAME:
        joined = f"{joined[:LONGEST_NAME]}-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"
    return f"comparison-{joined}.html"


if __name__ == "__main__":
    run_command(report)
