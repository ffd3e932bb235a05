"""The report in short, as Markdown, for a pull request, a chat or MLflow's description."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import ranked
from lora_lab.analysis.verdict_words import sentences
from lora_lab.analysis.wording import config_label, one_line
from lora_lab.figures.cells import Table, measure_cell, number_cell, text_cell
from lora_lab.figures.verdict import facts_table, verdict_table
from lora_lab.study.measures import TRAINABLE_PARAMS, in_unit_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.figures.evidence import Evidence
    from lora_lab.figures.style import Panel

SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")
KEY_TABLES = (
    "adequate-rank",
    "rules-of-thumb",
    "target-modules-at-equal-rank",
    "target-modules-at-equal-budget",
    "layers-at-equal-rank",
    "layers-at-equal-budget",
    "front-trainable-params",
    "epochs",
    "forgetting-by-gain",
    "importance",
    "rank-used",
    "metrics",
    "answers",
    "tasks",
)
"""Panels whose words and table are worth reading without the figure."""
AGREEMENT = "loss-and-"
"""How the keys of panels begin that compare a metric with the loss."""
LISTED = 8
"""Trials in the table of the best."""
WORDS = 4000
"""Characters of our own sentences, which may hold a foreign name."""


def markdown_text(text: str, limit: int = 300) -> str:
    """Foreign text on one line, `limit` characters at most, that no Markdown reader takes for markup."""
    return SPECIAL.sub(r"\\\1", one_line(text, limit))


def markdown_summary(evidence: Evidence, panels: Sequence[Panel]) -> str:
    """Question, verdict and its numbers, caveats, the best trials of the search, and the tables of the key figures.

    Args:
        evidence: the study and what its trials say.
        panels: of `panels_of` on the same evidence.

    """
    spec, findings = evidence.spec, evidence.findings
    lines = [f"# {markdown_text(spec.question or spec.study_name)}", ""]
    said = [*sentences(findings), *([evidence.on_test] if evidence.on_test else [])]
    lines += [f"- {markdown_text(sentence, WORDS)}" for sentence in said]
    if findings.rows:
        lines += ["", "## What the verdict rests on", "", *markdown_table(verdict_table(findings))]
        lines += ["", *markdown_table(facts_table(findings))]
    if evidence.notes:
        lines += ["", "## Read with care", "", *(f"- {markdown_text(note.sentence, WORDS)}" for note in evidence.notes)]
    best = _best_trials(evidence)
    if best.rows:
        lines += ["", "## The best trials of the search", "", *markdown_table(best)]
    for panel in panels:
        if panel.table is not None and (panel.key in KEY_TABLES or panel.key.startswith(AGREEMENT)):
            lines += ["", f"## {markdown_text(panel.title)}", "", markdown_text(panel.words, WORDS), ""]
            lines += markdown_table(panel.table)
    return in_unit_of(spec.model.task_type, "\n".join(lines) + "\n")


def markdown_table(table: Table) -> list[str]:
    """A table's lines; columns in which no row says anything are left out."""
    said = [column for column in range(len(table.headers)) if any(row[column].text for row in table.rows)]
    numeric = {column for column in said if all(row[column].kind == "n" for row in table.rows)}
    return [
        _line([table.headers[column] for column in said]),
        f"|{'|'.join('---:' if column in numeric else '---' for column in said)}|",
        *(_line([row[column].text for column in said]) for row in table.rows),
    ]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


def _best_trials(evidence: Evidence) -> Table:
    measure = evidence.findings.measure
    rows = [
        [
            number_cell(result.number),
            measure_cell(measure, value),
            text_cell(config_label(result.config, result.params)),
            measure_cell(TRAINABLE_PARAMS, result.metrics.get(TRAINABLE_PARAMS.name)),
        ]
        for result, value in ranked(evidence.results, measure)[:LISTED]
    ]
    return Table(["trial", f"{measure.label}, {measure.distance_unit}", "configuration", "params"], rows)
