"""Learning curves over replicates, and where overfitting begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.wording import nats, number_text, plural
from lora_lab.figures.cells import Cell, Table, interval_cell, number_cell, text_cell, yes_cell
from lora_lab.figures.style import VERMILION, Panel, blank_figure, color_of, error_bars, symbol_of, whole_epochs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go

    from lora_lab.analysis.epochs import EpochCurve, EpochPoint

MOST_CURVES = 6


def epochs_and_overfitting(curves: Sequence[EpochCurve], labels: Mapping[int, str]) -> Panel:
    """Curves of the best configurations with intervals; a cross marks where each is shown to rise again.

    Args:
        curves: best end first.
        labels: what the configuration of a trial is called, by its number.

    """
    key, title = "epochs", "Epochs and overfitting"
    same_unit = [curve for curve in curves if curve.unit == curves[0].unit]
    if not same_unit:
        return Panel(key=key, title=title, words="No configuration was evaluated twice.")
    shown = same_unit[:MOST_CURVES]
    unit = "epoch" if shown[0].unit == "epoch" else "optimizer step"
    figure = blank_figure(unit, "eval_loss (nats per token)")
    for index, curve in enumerate(shown):
        _line(figure, curve, index, labels.get(curve.number, ""))
    if unit == "epoch":
        whole_epochs(figure, [curve.points[-1].at for curve in shown])
    words = (
        f"Means over replicates of {_some(len(shown), len(same_unit))}, best end first, with 95% intervals where there "
        f"are replicates. {_outcome(same_unit)}"
    )
    if any(curve.apart for curve in shown):
        words += " Points of one line are trainings of their own length, because the schedule depends on it."
    rows = [_row(curve, labels.get(curve.number, "")) for curve in same_unit]
    return Panel(key=key, title=title, words=words, figure=figure, table=Table(HEADERS, rows))


def _some(shown: int, total: int) -> str:
    whole = plural(total, "configuration")
    return f"the {shown} best of {whole}" if shown < total else whole


def _outcome(curves: Sequence[EpochCurve]) -> str:
    tested = [curve for curve in curves if curve.overfits is not None]
    if not tested:
        return "None was replicated, so where overfitting begins is not known."
    rising = sum(curve.overfits is True for curve in tested)
    return (
        f"Of {plural(len(tested), 'replicated configuration')}, {rising} {'is' if rising == 1 else 'are'} shown to end "
        f"above {'its' if rising == 1 else 'their'} minimum (5%); a cross marks the first point shown to lie above it."
    )


def _hover(curve: EpochCurve, point: EpochPoint, label: str) -> str:
    tested = "" if point.p is None else f", p {point.p:.2g}"
    return (
        f"trial {curve.number}: {label}<br>{curve.unit} {number_text(point.at)}: {nats(point.value)} nats per token, "
        f"{nats(point.rise)} above the minimum{tested}"
    )


def _line(figure: go.Figure, curve: EpochCurve, index: int, label: str) -> None:
    values = [point.value for point in curve.points]
    name = f"trial {curve.number}"
    figure.add_scatter(
        x=[point.at for point in curve.points],
        y=values,
        error_y=error_bars(values, [point.interval for point in curve.points]),
        mode="lines+markers",
        line={"color": color_of(index), "width": 2},
        marker={"color": color_of(index), "symbol": symbol_of(index), "size": 7},
        name=name,
        legendgroup=name,
        text=[_hover(curve, point, label) for point in curve.points],
        hoverinfo="text",
    )
    onset = [point for point in curve.points if point.at == curve.onset]
    if onset:
        figure.add_scatter(
            x=[point.at for point in onset],
            y=[point.value for point in onset],
            mode="markers",
            marker={"color": VERMILION, "symbol": "x", "size": 13},
            name="shown to rise",
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )


HEADERS = [
    *("trial", "configuration", "trainings", "at the end, nats", "lowest at", "lowest, 95%", "above it at the end"),
    *("overfits", "from"),
]


def _row(curve: EpochCurve, label: str) -> list[Cell]:
    end = curve.points[-1]
    return [
        number_cell(curve.number),
        text_cell(label, "reason"),
        number_cell(curve.runs),
        number_cell(end.value, nats),
        number_cell(curve.minimum_at),
        interval_cell(curve.minimum_interval, lambda ends: f"{number_text(ends[0])} to {number_text(ends[1])}"),
        number_cell(end.rise, nats),
        yes_cell(curve.overfits),
        number_cell(curve.onset),
    ]
