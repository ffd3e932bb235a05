"""What the adapters made of the rank they were given."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import number_text
from lora_lab.figures.cells import Cell, Table, number_cell, percent_text, text_cell
from lora_lab.figures.style import BLUE, GRAY, ORANGE, Panel, blank_figure, log2_axis, plot_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.figures.evidence import AdapterSpectrum


def rank_used(spectra: Sequence[AdapterSpectrum]) -> Panel:
    """Directions used and effective rank against the rank given, over the adapters that were kept."""
    key, title = "rank-used", "Rank used of the rank given"
    if not spectra:
        return Panel(key=key, title=title, words="No adapter of a finished trial was kept.")
    figure = blank_figure("rank given (log2 scale)", "rank used (log2 scale)")
    given = [float(one.summary.r) for one in spectra]
    figure.add_scatter(
        x=sorted({*given}),
        y=sorted({*given}),
        mode="lines",
        line={"color": GRAY, "dash": "dash"},
        name="all of it",
        hoverinfo="skip",
    )
    for label, color, symbol, values in (
        ("directions with 99% of the energy", BLUE, "circle", [one.summary.rank_used for one in spectra]),
        ("effective rank (entropy)", ORANGE, "diamond-open", [one.summary.effective_rank for one in spectra]),
    ):
        figure.add_scatter(
            x=given,
            y=values,
            mode="markers",
            name=label,
            marker={"color": color, "symbol": symbol, "size": 9},
            text=[
                f"trial {one.number}{_role(one)}: {number_text(value)} of r = {one.summary.r}<br>{plot_text(one.label)}"
                for one, value in zip(spectra, values, strict=True)
            ],
            hoverinfo="text",
        )
    lowest = min(min(one.summary.rank_used, one.summary.effective_rank) for one in spectra)
    figure.update_xaxes(log2_axis(given))
    bottom = 2.0 ** math.floor(math.log2(max(1.0, lowest)))
    figure.update_yaxes(
        log2_axis([2.0**power for power in range(13) if bottom <= 2**power <= max(given)]),
        range=[math.log10(0.9 * bottom), math.log10(1.1 * max(given))],
    )
    words = (
        "Medians over the adapted matrices of each adapter that was kept, from the singular values of scaling x BA. "
        "Far below the line, the update could be stored at a lower rank; that a training at that lower rank would "
        "have found it, is not said."
    )
    return Panel(key=key, title=title, words=words, figure=figure, table=Table(HEADERS, [_row(one) for one in spectra]))


def _role(one: AdapterSpectrum) -> str:
    return f" ({one.role})" if one.role else ""


HEADERS = [
    *("trial", "choice", "configuration", "matrices", "rank given", "directions used", "effective rank"),
    *("stable rank", "share used", "norm of the update"),
]


def _row(one: AdapterSpectrum) -> list[Cell]:
    summary = one.summary
    return [
        number_cell(one.number),
        text_cell(one.role),
        text_cell(one.label, "reason"),
        number_cell(summary.modules),
        number_cell(summary.r),
        number_cell(summary.rank_used),
        number_cell(summary.effective_rank),
        number_cell(summary.stable_rank),
        number_cell(summary.share_used, percent_text),
        number_cell(summary.frobenius_norm),
    ]
