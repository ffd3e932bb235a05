"""`python -m lora_lab.export studies/x.yaml --to trl`: hand a study's trial over to another trainer or server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from lora_lab.exporters.targets import SERVERS, TRAINERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.analysis.findings import Role
    from lora_lab.exporters.handover import Export
    from lora_lab.exporters.targets import TargetName
    from lora_lab.exporters.trial import DataForm, ExportedTrial
    from lora_lab.tracking.registry import Registered

TARGETS: tuple[TargetName, ...] = (*TRAINERS, *SERVERS)

To = Annotated[str | None, typer.Option("--to", metavar="TARGET", help=f"One of {', '.join(TARGETS)}; or all.")]

Output = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write DIR/<target>/; by default runs/<study>/exports/<trial>/<target>/."),
]


def export(
    study: StudyFile,
    to: To = None,
    overrides: Overrides = None,
    *,
    trial: Annotated[int | None, typer.Option(min=0, metavar="N", help="The trial of this number.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The trial with the lowest loss.")] = False,
    recommended: Annotated[
        bool, typer.Option("--recommended", help="The cheapest trial that ties with the best (the default).")
    ] = False,
    rows: Annotated[bool, typer.Option("--rows", help="Hand the data over as rows of text.")] = False,
    tokens: Annotated[bool, typer.Option("--tokens", help="Hand the data over as token ids (the default).")] = False,
    metrics: OwnMetrics = None,
    output: Output = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the adapter and its card to the Hugging Face Hub.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: a new repository is public.")] = False,
    register: Annotated[
        str | None, typer.Option(metavar="NAME", help="Put the adapter into MLflow's model registry under this name.")
    ] = None,
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write the files with which another trainer repeats a trial, or a server serves it; nothing is trained."""
    with errors_shown():
        targets = _targets(to, asked_otherwise=push is not None or register is not None)
        choice = _choice(trial, best=best, recommended=recommended)
        form = _form(rows=rows, tokens=tokens)
        run_own_metrics(metrics)
        exported = _read(study, overrides or [], choice, form)
        exports = _export(exported, targets, output)
        pushed = _push(exported, push, public=public)
        registered = _register(exported, register, tracking_uri)
        if as_json:
            typer.echo(json.dumps(_as_json(exported, exports, pushed, registered), indent=2))
        else:
            _say(exported, exports, pushed, registered)
        if targets and not any(done.folder for done in exports):
            raise typer.Exit(2)


def _targets(to: str | None, *, asked_otherwise: bool) -> Sequence[TargetName]:
    from lora_lab.common.errors import InputError

    if to is None:
        if not asked_otherwise:
            raise InputError(f"give --to ({', '.join(TARGETS)} or all), --push, --register, or several of them")
        return ()
    if to == "all":
        return TARGETS
    for name in TARGETS:
        if name == to:
            return (name,)
    raise InputError(f"--to must be one of {', '.join(TARGETS)} or all, but is {to!r}")


def _choice(trial: int | None, *, best: bool, recommended: bool) -> int | Role:
    from lora_lab.common.errors import InputError

    if (trial is not None) + best + recommended > 1:
        raise InputError("--trial, --best and --recommended exclude each other; give one of them")
    if trial is not None:
        return trial
    return "best" if best else "recommended"


def _form(*, rows: bool, tokens: bool) -> DataForm | None:
    from lora_lab.common.errors import InputError

    if rows and tokens:
        raise InputError("--rows and --tokens exclude each other; give one of them")
    return "rows" if rows else "tokens" if tokens else None


def _read(study: Path, overrides: list[str], choice: int | Role, form: DataForm | None) -> ExportedTrial:
    from lora_lab.study.file.loading import load_study

    spec = load_study(study, overrides)
    # Below the loading, so that a mistake is told at once.
    from lora_lab.exporters.trial import read_trial
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import stored_results

    folder = RunFolder.of(spec.study_name)
    return read_trial(stored_results(spec, folder), folder, choice, form)


def _export(trial: ExportedTrial, targets: Sequence[TargetName], output: Path | None) -> list[Export]:
    from lora_lab.exporters.handover import hand_over
    from lora_lab.results.folder import RunFolder

    parent = output or RunFolder.of(trial.spec.study_name).exports / f"{trial.result.number:04d}"
    return [hand_over(trial, target, parent) for target in targets]


def _push(trial: ExportedTrial, repo: str | None, *, public: bool) -> str | None:
    if repo is None:
        return None
    from lora_lab.exporters.hub import push

    return push(trial, repo, public=public)


def _register(trial: ExportedTrial, name: str | None, tracking_uri: str | None) -> Registered | None:
    if name is None:
        return None
    from lora_lab.exporters.registry import register_adapter
    from lora_lab.results.folder import RunFolder
    from lora_lab.tracking.address import resolve_tracking_uri
    from lora_lab.tracking.mirror import catch_up

    uri = resolve_tracking_uri(tracking_uri)
    catch_up(RunFolder.of(trial.spec.study_name).root, uri)
    return register_adapter(trial, name, uri)


def _say(trial: ExportedTrial, exports: Sequence[Export], pushed: str | None, registered: Registered | None) -> None:
    typer.echo(trial.title)
    for done in exports:
        for remark in done.refusals:
            typer.echo(f"error: --to {done.target}: {remark.text}", err=True)
        if done.folder is None:
            continue
        typer.echo(f"{done.target}: {done.folder}")
        for remark in done.warnings:
            typer.echo(f"  warning: {remark.text}")
        typer.echo(f"  cd {done.folder} && {done.command}")
    if pushed:
        typer.echo(f"pushed: {pushed}")
    if registered:
        typer.echo(f"registered: {registered.uri}, version {registered.version}")
        typer.echo(f'  mlflow.artifacts.download_artifacts("{registered.uri}") is the folder that PeftModel loads')


def _as_json(
    trial: ExportedTrial, exports: Sequence[Export], pushed: str | None, registered: Registered | None
) -> dict[str, Any]:
    def remarks(found: Sequence[Any]) -> list[dict[str, Any]]:
        return [
            {"field": one.field, "value": one.value, "reason": one.reason, "instead": list(one.instead)}
            for one in found
        ]

    return {
        "study": trial.spec.study_name,
        "trial": trial.result.number,
        "roles": list(trial.roles),
        "exports": [
            {
                "target": done.target,
                "folder": str(done.folder),
                "command": done.command,
                "warnings": remarks(done.warnings),
            }
            for done in exports
            if done.folder
        ],
        "refused": [{"target": done.target, "refusals": remarks(done.refusals)} for done in exports if not done.folder],
        "pushed": pushed,
        "registered": None
        if registered is None
        else {"name": registered.name, "version": registered.version, "uri": registered.uri},
    }


if __name__ == "__main__":
    run_command(export)
