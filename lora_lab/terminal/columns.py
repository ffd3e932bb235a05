"""Tables and sentences that fit a terminal: figures in columns of their own, then what makes the rows differ."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

GAP = 2
"""Spaces between two columns."""
LEAST_ROOM = 16
"""Columns that the parts of a row get at least, also where the terminal is narrower than that."""


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration of a table."""

    figures: tuple[str, ...]
    """Aligned to the right, one below each head."""
    parts: Mapping[str, str]
    """What the configuration is, by names that mean the same in every row; an empty text says nothing."""
    style: str | None = None


def parts_table(heads: Sequence[str], rows: Sequence[Row], last_head: str, width: int) -> tuple[Table, str]:
    """A table of figures whose last column says what makes its rows differ, and in words what all of them share.

    Where the last column has room for it, each part has a place of its own in it; else rows take several lines.

    Args:
        heads: Over the figures.
        rows: In the order of the table.
        last_head: Over the last column.
        width: Of the terminal, in columns.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.parts))
    texts = {name: [row.parts.get(name, "") for row in rows] for name in names}
    differing = [texts[name] for name in names if len(set(texts[name])) > 1]
    figures = [max(map(cell_len, column)) for column in zip(heads, *(row.figures for row in rows), strict=True)]
    room = max(LEAST_ROOM, width - sum(figures) - GAP * len(figures))
    last = _in_places(differing, room) or [_wrapped(parts, room) for parts in zip(*differing, strict=True)]
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    if differing:
        table.add_column(last_head, no_wrap=True)
    for index, row in enumerate(rows):
        more = [Text(last[index])] if differing else []
        table.add_row(*map(Text, row.figures), *more, style=row.style)
    shared = ", ".join(filter(None, (texts[name][0] for name in names if texts[name] not in differing)))
    return table, shared


def _in_places(columns: Sequence[Sequence[str]], room: int) -> list[str] | None:
    """Each row's parts below those of the other rows; None where that takes more than `room`."""
    sizes = [max(map(cell_len, column)) for column in columns]
    if sum(sizes) + GAP * (len(sizes) - 1) > room:
        return None
    return [
        (" " * GAP).join(set_cell_size(text, size) for text, size in zip(row, sizes, strict=True)).rstrip()
        for row in zip(*columns, strict=True)
    ]


def _wrapped(parts: Sequence[str], room: int) -> str:
    """Parts on as many lines as they need; what is longer than a line is cut to it."""
    lines = [""]
    for part in filter(None, parts):
        text = part if cell_len(part) <= room else set_cell_size(part, room - 1) + "…"
        longer = f"{lines[-1]}{' ' * GAP}{text}" if lines[-1] else text
        if cell_len(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(text)
    return "\n".join(lines)


def say(console: Console, text: str, *, first: str = "") -> None:
    """Print a paragraph: on a terminal in lines indented below its first word, elsewhere on one line for `grep`.

    Args:
        console: Where it is printed.
        text: In words, without markup.
        first: What it begins with, such as a bullet.
    """
    said = first + text
    if console.is_terminal:
        indent = " " * cell_len(first)
        said = textwrap.fill(
            text,
            max(console.width, LEAST_ROOM + len(indent)),
            initial_indent=first,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    console.print(said, markup=False, soft_wrap=True)
