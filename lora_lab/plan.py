"""`python -m lora_lab.plan studies/x.yaml`: what a study will do, need and cost, before anything is loaded."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import (
    MemorySize,
    Overrides,
    OwnMetrics,
    StudyFile,
    errors_shown,
    run_command,
    run_own_metrics,
)
from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.planning.plan import Plan

DeviceName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Plan for another device: H200, H100-80GB, A100-80GB, A100-40GB, L40S, L4, T4, RTX-4090, RTX-3090, "
        "V100-32GB, or the bytes of a CUDA device such as 24GB.",
    ),
]


def plan(
    study: StudyFile,
    overrides: Overrides = None,
    *,
    device: DeviceName = None,
    memory_limit: MemorySize = None,
    metrics: OwnMetrics = None,
    calibrate: Annotated[
        bool,
        typer.Option("--calibrate", help="Load base and data, time a few steps, and tell what the study will take."),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON, for scripts.")] = False,
) -> None:
    """Tell what a study will train, whether it fits into memory, and what it costs; needs no weights and no data."""
    with errors_shown():
        if calibrate and device is not None:
            raise InputError(
                "--calibrate times the device that is here, and --device plans for another; give one of them"
            )
        run_own_metrics(metrics)
        made = _make(study, overrides or [], device, memory_limit, calibrated=calibrate, quiet=json)
    if json:
        from json import dumps

        typer.echo(dumps(made.as_dict(), indent=2))
        return
    from rich.console import Console

    from lora_lab.terminal.plan_text import print_plan

    print_plan(made, Console(file=sys.stdout, highlight=False))


def _make(
    study: Path, overrides: list[str], device: str | None, memory_limit: str | None, *, calibrated: bool, quiet: bool
) -> Plan:
    from lora_lab.planning.devices import device_named
    from lora_lab.results.folder import RunFolder
    from lora_lab.study.file.loading import load_study
    from lora_lab.training.memory.room import MemoryLimit

    target = device_named(device) if device else None
    limit = MemoryLimit.parse(memory_limit)  # mistakes are told before anything slow is imported
    spec = load_study(study, overrides)

    from rich.console import Console

    from lora_lab.planning.answer_checks import require_packages, with_classes
    from lora_lab.planning.planner import make_plan

    folder, status = RunFolder.of(spec.study_name), Console(stderr=True, quiet=quiet)
    with status.status("reading the model's config") as line:
        require_packages(spec)
        spec = with_classes(spec, folder.data_cache)
        made = make_plan(spec, folder, device=target, limit=limit, progress=line.update)
        if not calibrated:
            return made
        from lora_lab.runner.calibration import calibrate

        return replace(made, calibration=calibrate(spec, progress=line.update))


if __name__ == "__main__":
    run_command(plan)
