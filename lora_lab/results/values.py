"""A study's results as names and values, for programs: what `--json` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.analysis.verdict_words import sentences
from lora_lab.study.measures import in_unit_of

if TYPE_CHECKING:
    from lora_lab.analysis.findings import Standing, VerdictRow
    from lora_lab.results.folder import RunFolder
    from lora_lab.results.results import Results
    from lora_lab.study.results import TrialResult


def verdict_sentences(results: Results) -> list[str]:
    """The verdict in words."""
    on_test = results.on_test()
    said = [*sentences(results.findings), *([on_test] if on_test else [])]
    return [in_unit_of(results.spec.model.task_type, sentence) for sentence in said]


def verdict_values(results: Results) -> dict[str, Any]:
    """The verdict: what is judged, the best and the recommended trial, and the margin of a tie."""
    findings, judged = results.findings, results.findings.measure
    return {
        "metric": judged.name,
        "base_value": findings.base_value,
        **_choice("best", findings.best),
        **_choice("recommended", findings.cheapest),
        f"margin_{judged.distance_unit}": findings.margin,
        "sentences": verdict_sentences(results),
    }


def _choice(role: str, standing: Standing | None) -> dict[str, Any]:
    return {role: standing.number if standing else None, f"{role}_value": standing.value if standing else None}


def study_values(results: Results, folder: RunFolder) -> dict[str, Any]:
    """All that is known of a study: its verdict, how each configuration compares with the best, and every trial."""
    return {
        "study_name": results.spec.study_name,
        "question": results.spec.question,
        "base_values": dict(results.base_values),
        "verdict": {
            **verdict_values(results),
            "tested": results.findings.tested,
            "rows": [_row_values(row) for row in results.findings.rows],
        },
        "notes": [note.sentence for note in results.notes],
        "trials": [trial_values(trial, folder) for trial in results.trials],
        "run_folder": str(folder.root),
    }


def _row_values(row: VerdictRow) -> dict[str, Any]:
    standing = row.standing
    return {
        "trial": standing.number,
        "label": standing.label,
        "value": standing.value,
        "value_interval": row.value_interval,
        "runs": standing.runs,
        "worse_by": row.estimate,
        "interval": row.interval,
        "corrected_p": row.corrected_p,
        "decision": row.decision,
        "costs": dict(standing.costs),
    }


def trial_values(trial: TrialResult, folder: RunFolder) -> dict[str, Any]:
    """One trial: what was chosen for it, all of its settings, and what became of it."""
    adapter = folder.adapter_of(trial)
    return {
        "number": trial.number,
        "state": trial.state,
        "reason": trial.reason or None,
        "source": trial.source,
        "confirms": trial.confirms,
        "engine": trial.engine.name,
        "params": dict(trial.params),
        "metrics": dict(trial.metrics),
        "eval_loss_by_evaluation": {str(number): loss for number, loss in sorted(trial.curve.items())},
        "config": trial.config.model_dump(mode="json"),
        "adapter": str(adapter) if adapter.is_dir() else None,
    }
