"""The verdict's tables: every number that its sentences say, and how each comparison was decided."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.verdict_words import facts
from lora_lab.analysis.wording import config_label, nats
from lora_lab.figures.cells import Cell, Table, interval_cell, measure_cell, number_cell, p_cell, text_cell
from lora_lab.study.measures import MEASURES, costs

if TYPE_CHECKING:
    from lora_lab.analysis.findings import Findings, VerdictRow

HEADERS = [
    *("trial", "configuration", "decision", "loss, nats", "loss, 95%", "runs", "sd, nats", "above best, nats"),
    *("above best, 95%", "p", "corrected p", "rests on"),
]


def verdict_table(findings: Findings) -> Table:
    """The best configuration, then what was compared with it; the recommended one stands out."""
    choice = findings.cheapest.number if findings.cheapest and findings.helped else None
    marked = [index for index, row in enumerate(findings.rows) if row.standing.number == choice]
    headers = HEADERS + [MEASURES[name].header for name in costs()]
    return Table(headers, [_row(row) for row in findings.rows], marked, fixed=True)


def facts_table(findings: Findings) -> Table:
    """What else the sentences say."""
    return Table(["what", "value"], [[text_cell(fact.name), text_cell(fact.text)] for fact in facts(findings)])


def _row(row: VerdictRow) -> list[Cell]:
    standing = row.standing
    return [
        number_cell(standing.number),
        text_cell(config_label(standing.config), "reason"),
        text_cell(row.decision, "wrap"),
        number_cell(standing.value, nats),
        interval_cell(row.value_interval),
        number_cell(standing.runs),
        number_cell(standing.spread, nats),
        number_cell(row.estimate, nats),
        interval_cell(row.interval),
        p_cell(row.p),
        p_cell(row.corrected_p),
        text_cell(row.evidence or "", "wrap"),
        *(measure_cell(MEASURES[name], standing.costs.get(name)) for name in costs()),
    ]
