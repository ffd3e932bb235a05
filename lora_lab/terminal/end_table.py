"""The best configurations as a table, which a finished sweep prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.selection import search_trials
from lora_lab.analysis.verdict import candidates
from lora_lab.analysis.verdict_words import STATE_WORDS
from lora_lab.analysis.wording import config_parts, measure_text, plural, value_name
from lora_lab.study.measures import MEASURES, costs
from lora_lab.terminal.columns import Row, parts_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from rich.table import Table

    from lora_lab.analysis.findings import Findings
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.study.results import TrialResult


SHOWN = 8
"""Configurations in the table, and the recommended one."""


def end_table(results: Sequence[TrialResult], findings: Findings, width: int) -> tuple[Table, list[str]]:
    """The best configurations with the values that the verdict rests on, and what to know to read them.

    Where none finished, the first trials and what became of them.

    Args:
        results: Every trial of the study, retrainings included.
        findings: Of `decide` on the same trials.
        width: Of the terminal, in columns.
    """
    groups = _in_order(replicate_groups(results, findings.measure), findings)
    if not groups:
        return _lost_trials(results, width)
    choice = findings.cheapest.number if findings.cheapest and findings.helped else None
    ties = {standing.number for standing in findings.equivalent} if findings.helped else set()
    shown = groups[:SHOWN] + [group for group in groups[SHOWN:] if group.number == choice]
    counted = len({len(group.values) for group in groups}) > 1
    marks = dict.fromkeys(ties, "=") | ({} if choice is None else {choice: "*"})
    rows = [_row(group, marks.get(group.number, ""), counted=counted) for group in shown]
    heads = ["trial", value_name(findings.measure), *(["runs"] if counted else [])]
    table, shared = parts_table([*heads, *(MEASURES[cost].header for cost in costs())], rows, "configuration", width)
    words = list(_how_to_read(findings, groups, {marks.get(group.number, "") for group in shown}))
    if shared and len(rows) > 1:
        words.append(f"all of these: {shared}")
    if len(groups) > len(shown):
        words.append(f"{len(shown)} of {plural(len(groups), 'configuration')} that finished; the report has all")
    return table, words


def _in_order(groups: Sequence[ReplicateGroup], findings: Findings) -> list[ReplicateGroup]:
    """The best first, then those that could have been it, then the rest, each by value."""
    rivals = {group.number for group in candidates(groups)} if groups else set()
    best = findings.best.number if findings.best else None
    return sorted(groups, key=lambda one: (one.number != best, one.number not in rivals, one.mean, one.number))


def _row(group: ReplicateGroup, mark: str, *, counted: bool) -> Row:
    known = ((cost, group.metric_mean(cost)) for cost in costs())
    spent = ("" if value is None else measure_text(MEASURES[cost], value) for cost, value in known)
    runs = [str(len(group.values))] if counted else []
    value = measure_text(group.measure, group.value)
    parts = config_parts(group.config, group.searched, defaults=True)
    return Row((f"{mark}{group.number}", value, *runs, *spent), parts, "bold" if mark == "*" else None)


def _how_to_read(findings: Findings, groups: Sequence[ReplicateGroup], marks: set[str]) -> Iterator[str]:
    measure = findings.measure
    counts = {len(group.values) for group in groups}
    if counts == {1}:
        of = "one run each"
    elif any(group.retrainings for group in groups):
        of = "means over as many runs; of retrained ones, over their fresh seeds alone"
    else:
        of = "means over as many runs" if len(counts) > 1 else f"means over {max(counts)} seeds"
    name = value_name(measure)
    details = (measure.label if name != measure.label else "", measure.unit)
    yield f"{name}: {'; '.join(filter(None, (', '.join(filter(None, details)), of)))}"
    said = {"*": "* the cheapest tie (recommended)", "=": "= a tie"}
    if legend := ";  ".join(text for mark, text in said.items() if mark in marks):
        yield legend


def _lost_trials(results: Sequence[TrialResult], width: int) -> tuple[Table, list[str]]:
    trials = search_trials(results)
    rows = [
        Row((str(trial.number), STATE_WORDS[trial.state]), config_parts(trial.config, trial.params, defaults=True))
        for trial in trials[:SHOWN]
    ]
    table, shared = parts_table(["trial", "state"], rows, "configuration", width)
    return table, [f"all of these: {shared}"] if shared and len(rows) > 1 else []
