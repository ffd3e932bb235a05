"""Tables as data, which become HTML in the report and Markdown in its short form; every cell is escaped there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import interval_text, measure_text, number_text, one_line, p_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.measures import Measure

LONG = 8
"""Rows beyond which a table under a figure is folded away."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows, and by what it sorts: a number, a text, or "" for nothing known (always last)."""

    text: str
    sort: str = ""
    kind: str = ""
    """`n` for a number (right-aligned), `reason` for long text, `wrap` for a few words that may break."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells, one for each header."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: Sequence[int] = ()
    """Indices of the rows that stand out."""
    fixed: bool = False
    """Keep the first column in view where the rest scrolls."""


def text_cell(text: str, kind: str = "") -> Cell:
    """Foreign text on one line."""
    shown = one_line(text)
    return Cell(shown, shown, kind)


def number_cell(value: float | None, show: Callable[[float], str] = number_text) -> Cell:
    """A number, blank where it is not known."""
    if value is None or not math.isfinite(value):
        return Cell("", "", "n")
    return Cell(show(value), repr(float(value)), "n")


def measure_cell(measure: Measure, value: float | None) -> Cell:
    """A value of a measure, blank where it is not known."""
    return number_cell(value, partial(measure_text, measure))


def interval_cell(
    interval: tuple[float, float] | None, show: Callable[[tuple[float, float]], str] = interval_text
) -> Cell:
    """An interval, which sorts by its lower end; blank where there is none."""
    return Cell("", "", "n") if interval is None else Cell(show(interval), repr(float(interval[0])), "n")


def percent_text(share: float) -> str:
    """A share as a percentage with one decimal."""
    return f"{100 * share:.1f}%"


def p_cell(p: float | None) -> Cell:
    """A p-value, blank where nothing was tested."""
    return number_cell(p, p_text)


def yes_cell(value: bool | None) -> Cell:
    """Yes or no as a test or a count says; what was not tested says so."""
    return text_cell("not tested" if value is None else "yes" if value else "no")


def html_table(table: Table) -> str:
    """A sortable table that scrolls sideways where it must."""
    numeric = [
        bool(table.rows) and all(row[column].kind == "n" for row in table.rows) for column in range(len(table.headers))
    ]
    head = "".join(
        f'<th{" class=n" if number else ""}><button type="button">{escape(header)}</button></th>'
        for header, number in zip(table.headers, numeric, strict=True)
    )
    body = "\n".join(
        f"<tr{' class=choice' if index in table.marked else ''}>{''.join(map(_cell, row))}</tr>"
        for index, row in enumerate(table.rows)
    )
    kind = ' class="fixed"' if table.fixed else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def folded(table: Table) -> str:
    """A table under a figure; a long one opens on demand."""
    if len(table.rows) <= LONG:
        return html_table(table)
    return f"<details><summary>The numbers ({len(table.rows)} rows)</summary>{html_table(table)}</details>"


def _cell(cell: Cell) -> str:
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return f'<td{kind} data-sort="{escape(cell.sort)}">{escape(cell.text)}</td>'
