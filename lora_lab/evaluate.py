"""`python -m lora_lab.evaluate studies/x.yaml --tasks T1,T2`: tasks of lm-evaluation-harness, for trained trials."""

from __future__ import annotations

import json
import os
import sys
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

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.common.activity import Activity
    from lora_lab.harness.asked import Asked
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.study.task_scores import TaskScores

Tasks = Annotated[str, typer.Option("--tasks", metavar="T1,T2", help="Tasks or groups of lm-evaluation-harness.")]
IncludePath = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A folder with task files of your own; their code is run.")
]
Trials = Annotated[
    str,
    typer.Option(metavar="T1,T2", help="Each best, recommended, a trial's number, or all whose adapters are there."),
]


def evaluate(
    study: StudyFile,
    tasks: Tasks,
    overrides: Overrides = None,
    *,
    include_path: IncludePath = None,
    trials: Trials = "best,recommended",
    limit: Annotated[float | None, typer.Option(help="Documents of each task; below 1, a share of them.")] = None,
    num_fewshot: Annotated[int | None, typer.Option(min=0, help="Solved examples before each question.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Rows of each trial in a forward pass (default: the study's eval batch size)."),
    ] = None,
    apply_chat_template: Annotated[
        bool, typer.Option("--apply-chat-template", help="Ask as a user does, in the base's chat template.")
    ] = False,
    metrics: OwnMetrics = None,
    tracking_uri: TrackingUri = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure trained trials and their bare base by tasks, all of them together on one loaded base."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # before tqdm is imported: progress is told here
    with errors_shown():
        run_own_metrics(metrics)
        words = [name.strip() for name in tasks.split(",") if name.strip()]
        chosen = [name.strip() for name in trials.split(",") if name.strip()]
        _check(words, chosen, include_path, limit)
        from lora_lab.harness.asked import Asked

        asked = Asked(
            tasks=words,
            include_path=include_path,
            limit=limit,
            num_fewshot=num_fewshot,
            batch_size=batch_size,
            apply_chat_template=apply_chat_template,
        )
        results, scores = _evaluate(study, overrides or [], chosen, asked, tracking_uri, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(_as_json(results, scores), indent=2))
        return
    from rich.console import Console

    from lora_lab.terminal.task_table import print_task_scores

    print_task_scores(scores, results.findings, Console(file=sys.stdout, highlight=False))
    typer.echo(f"python -m lora_lab.report {study} puts this into the report")


def _check(tasks: Sequence[str], trials: Sequence[str], include_path: Path | None, limit: float | None) -> None:
    from lora_lab.common.errors import InputError

    for option, names in (("--tasks", tasks), ("--trials", trials)):
        if not names:
            raise InputError(f"{option}: names one thing at least, separated by commas")
    if include_path is not None and not include_path.is_dir():
        raise InputError(f"--include-path: {include_path} is no folder; give one with task files (*.yaml)")
    if limit is not None and not limit > 0:
        raise InputError(f"--limit: must be above 0, but is {limit:g}; leave it out for all documents")


def _evaluate(
    study: Path, overrides: list[str], words: Sequence[str], asked: Asked, tracking_uri: str | None, *, quiet: bool
) -> tuple[Results, list[TaskScores]]:
    from lora_lab.study.file.loading import load_study

    spec = load_study(study, overrides)
    # Below the loading, so that a mistake is told at once.
    from rich.console import Console

    from lora_lab.common.lease import lease
    from lora_lab.harness.evaluation import evaluate_trials
    from lora_lab.results.choosing import chosen_trials
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import stored_results

    folder = RunFolder.of(spec.study_name)
    results = stored_results(spec, folder)
    trials = chosen_trials(results, folder, words)
    with lease(folder.lease, folder.root):  # the journal has one writer
        with Console(stderr=True, quiet=quiet).status("loading the base") as line:

            def tell(activity: Activity) -> None:
                line.update(f"{activity.what}: {activity.done} of {activity.total} {activity.parts}")

            scores = evaluate_trials(trials, folder, asked, tell)
        _track(folder, scores, {str(trial.number) for trial in trials}, tracking_uri)
    return results, scores


def _track(folder: RunFolder, scores: Sequence[TaskScores], new: set[str], tracking_uri: str | None) -> None:
    """Journal what was measured, and send it to MLflow as far as that is there."""
    from lora_lab.harness.records import records_of
    from lora_lab.tracking.address import resolve_tracking_uri
    from lora_lab.tracking.journal import Journal
    from lora_lab.tracking.mirror import catch_up

    with Journal(folder.root) as journal:
        journal.append(*records_of(scores, new))
    note = catch_up(folder.root, resolve_tracking_uri(tracking_uri))
    if note:
        typer.echo(note, err=True)


def _as_json(results: Results, scores: Sequence[TaskScores]) -> dict[str, Any]:
    return {
        "study": results.spec.study_name,
        "tasks": [
            {
                "task": task.task,
                "settings": dict(task.settings),
                "columns": {
                    name: {metric: score._asdict() for metric, score in column.items()}
                    for name, column in task.columns.items()
                },
            }
            for task in scores
        ],
    }


if __name__ == "__main__":
    run_command(evaluate)
