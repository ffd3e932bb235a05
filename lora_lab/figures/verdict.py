"""The verdict's tables: every number that its sentences say, and how each comparison was decided."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lora_lab.analysis.verdict_words import facts
from lora_lab.analysis.wording import measure_interval, value_name
from lora_lab.figures.cells import Cell, Table, interval_cell, measure_cell, number_cell, p_cell, text_cell
from lora_lab.study.measures import MEASURES, costs

if TYPE_CHECKING:
    from lora_lab.analysis.findings import Findings, VerdictRow
    from lora_lab.study.measures import Measure


def verdict_table(findings: Findings) -> Table:
    """The best configuration, then what was compared with it; the recommended one stands out."""
    choice = findings.cheapest.number if findings.cheapest and findings.helped else None
    marked = [index for index, row in enumerate(findings.rows) if row.standing.number == choice]
    unit, value = findings.measure.distance_unit, value_name(findings.measure)
    headers = [
        *("trial", "configuration", "decision", f"{value}, {unit}", f"{value}, 95%", "runs", f"sd, {unit}"),
        *(f"{findings.measure.worse} best, {unit}", f"{findings.measure.worse} best, 95%", "p", "corrected p"),
        *("rests on", *(MEASURES[name].header for name in costs())),
    ]
    return Table(headers, [_row(findings.measure, row) for row in findings.rows], marked, fixed=True)


def facts_table(findings: Findings) -> Table:
    """What else the sentences say."""
    return Table(["what", "value"], [[text_cell(fact.name), text_cell(fact.text)] for fact in facts(findings)])


def _row(measure: Measure, row: VerdictRow) -> list[Cell]:
    standing = row.standing
    return [
        number_cell(standing.number),
        text_cell(standing.label, "reason"),
        text_cell(row.decision, "wrap"),
        measure_cell(measure, standing.value),
        interval_cell(row.value_interval, partial(measure_interval, measure)),
        number_cell(standing.runs),
        measure_cell(measure, standing.spread),
        measure_cell(measure, row.estimate),
        interval_cell(row.interval, partial(measure_interval, measure)),
        p_cell(row.p),
        p_cell(row.corrected_p),
        text_cell(row.evidence or "", "wrap"),
        *(measure_cell(MEASURES[name], standing.costs.get(name)) for name in costs()),
    ]
