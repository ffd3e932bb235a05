"""`python -m lora_lab.serve studies/x.yaml`: ask the base and the best adapters of a study, side by side."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from lora_lab.command_line import (
    Overrides,
    OwnMetrics,
    StudyFile,
    command_text,
    errors_shown,
    run_command,
    run_own_metrics,
    study_words,
)

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.serving.server import Served

Trials = Annotated[
    str | None,
    typer.Option(metavar="LIST", help="Trials to load, such as best,recommended,3; by default best and recommended."),
]


def serve(
    study: StudyFile,
    overrides: Overrides = None,
    *,
    metrics: OwnMetrics = None,
    trials: Trials = None,
    top: Annotated[int | None, typer.Option(min=1, max=64, metavar="N", help="Load the N best configurations.")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: any that is free.")] = 8000,
) -> None:
    """Load a study's base once with several of its adapters, and answer OpenAI's requests on 127.0.0.1 until Ctrl-C.

    `model` is `base`, `trial-N`, `best` or `recommended`. The page at the address asks two of them side by side.
    It is for trying adapters out: for production, export them to vLLM or SGLang.
    """
    with errors_shown():
        own = run_own_metrics(metrics)
        served = _load(study, overrides or [], trials, top)
        words = study_words(study, overrides or [], own)
        from lora_lab.serving.server import run

        for name, text in served.listed():
            typer.echo(f"{name:<12} {text}")
        typer.echo(f"for production: {command_text('export', [*words, '--to', 'vllm'])}   (or --to sglang)")
        run(served, port, typer.echo)
    sys.stdout.flush()
    os._exit(0)  # there is nothing to write, and tearing a loaded base down takes seconds


def _load(study: Path, overrides: list[str], trials: str | None, top: int | None) -> Served:
    from lora_lab.common.errors import InputError
    from lora_lab.results.folder import RunFolder
    from lora_lab.study.file.loading import load_study

    if trials is not None and top is not None:
        raise InputError("--trials and --top both choose adapters; give one of them")
    spec = load_study(study, overrides)
    if spec.model.classifies:
        raise InputError("serve: this study's base tells classes (task_type SEQ_CLS); there is no text to answer with")

    from lora_lab.results.results import stored_results

    folder = RunFolder.of(spec.study_name)
    results = stored_results(spec, folder)
    return _served(results, folder, trials, top)


def _served(results: Results, folder: RunFolder, trials: str | None, top: int | None) -> Served:
    from lora_lab.common.errors import InputError
    from lora_lab.results.choosing import best_trials, chosen_trials

    words = (trials or "best,recommended").split(",")
    chosen = best_trials(results, folder, top) if top else chosen_trials(results, folder, [w.strip() for w in words])
    if len({trial.config.model for trial in chosen}) > 1:
        numbers = ", ".join(str(trial.number) for trial in chosen)
        raise InputError(f"--trials: trials {numbers} are of different bases; one is loaded, so choose those of one")
    from lora_lab.serving.server import load  # torch: mistakes are told before

    return load(results, folder, chosen)


if __name__ == "__main__":
    run_command(serve)
