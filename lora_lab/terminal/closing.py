"""The end of a run, in words: the best trials, the verdict, and where everything is."""

from __future__ import annotations

import json as json_format
import sys
from typing import TYPE_CHECKING

from rich.console import Console

from lora_lab.results.values import verdict_sentences, verdict_values
from lora_lab.terminal.columns import say
from lora_lab.terminal.end_table import end_table
from lora_lab.tracking.address import shown_uri

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results


def say_results(
    results: Results, folder: RunFolder, tracking_uri: str, *, json: bool, ran: bool, next_steps: Mapping[str, str]
) -> None:
    """Print the results of a complete study, as text for people or as one line of JSON for programs.

    Args:
        results: What the study found.
        folder: Where its files are.
        tracking_uri: The MLflow store, resolved.
        json: Whether a program reads.
        ran: Whether something was trained; otherwise the study had been complete before.
        next_steps: Command lines that people may want next, by what they are for.
    """
    if json:
        _as_json(results, folder, tracking_uri)
    else:
        _as_text(results, folder, next_steps, ran=ran)


def _as_text(results: Results, folder: RunFolder, next_steps: Mapping[str, str], *, ran: bool) -> None:
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    if not ran:
        console.print(
            f"Study {results.spec.study_name} is complete already; more trials: --trials N, anew: --fresh.\n",
            markup=False,
        )
    print_results(results, folder, next_steps, console)


def print_results(results: Results, folder: RunFolder, next_steps: Mapping[str, str], console: Console) -> None:
    """The best configurations, the verdict, what to read it with, and where everything is."""
    table, words = end_table(results.trials, results.findings, console.width)
    console.print(table)
    for line in words:
        say(console, line)
    console.print("\nVerdict")
    forgetting = results.forgetting()
    for sentence in (*verdict_sentences(results), *([forgetting.sentence] if forgetting else [])):
        say(console, sentence, first="  - ")
    has_verdict = results.findings.best is not None
    notes = [note for note in results.notes if has_verdict or note.kind == "unfinished"]
    if notes:
        console.print("\nRead with care")
        for note in notes:
            say(console, note.sentence, first="  - ")
    console.print()
    places = _places(results, folder) | (dict(next_steps) if has_verdict else {})
    for label, place in places.items():
        console.print(f"{label:<12} {place}", markup=False)


def _places(results: Results, folder: RunFolder) -> dict[str, str]:
    places = {"report": str(folder.report)}
    if folder.best.exists():
        places["best"] = f"{folder.best}/ (adapter/, adapter_config.json, config.yaml)"
    cheapest, best = results.findings.cheapest, results.findings.best
    if cheapest and best and cheapest.number != best.number:
        kept = "" if (folder.recommended / "adapter").exists() else "; only config.yaml: its adapter was dropped"
        places["recommended"] = f"{folder.recommended}/ (trial {cheapest.number}, the cheapest within the margin{kept})"
    return places


def _as_json(results: Results, folder: RunFolder, tracking_uri: str) -> None:
    line = {
        "kind": "verdict",
        "study_name": results.spec.study_name,
        **verdict_values(results),
        "report": str(folder.report),
        "run_folder": str(folder.root),
        "tracking_uri": shown_uri(tracking_uri),
    }
    sys.stdout.write(json_format.dumps(line) + "\n")
    sys.stdout.flush()
