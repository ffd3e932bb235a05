"""Target sets and layers against each other: at equal rank, and at an equal number of trained parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.wording import count_text, nats
from lora_lab.figures.cells import Cell, Table, interval_cell, number_cell, text_cell, yes_cell
from lora_lab.figures.style import (
    Panel,
    blank_figure,
    color_of,
    decimal_axis,
    error_bars,
    log2_axis,
    plot_text,
    set_height,
    symbol_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from lora_lab.analysis.equal_budget import ArmComparison, ArmValue, Comparison

NAMES = {"target_modules": "Target modules", "layers": "Layers"}
NO_COMMON_RANK = "No two of them were tried at the same rank: not drawn."
LOSS_TITLE = "eval_loss (nats per token)"


def arm_panels(comparison: ArmComparison) -> list[Panel]:
    """One figure at equal rank and one at equal budget; each has its table."""
    name, key = NAMES[comparison.by], comparison.by.replace("_", "-")
    return [
        _panel(f"{key}-at-equal-rank", f"{name} at equal rank", comparison.at_equal_rank, NO_COMMON_RANK),
        _panel(f"{key}-at-equal-budget", f"{name} at equal budget", comparison.at_equal_budget, comparison.sentence),
    ]


def _panel(key: str, title: str, points: Sequence[Comparison], sentence: str) -> Panel:
    """`sentence` says what the comparison shows; where there is none, why."""
    if not points:
        return Panel(key=key, title=title, words=sentence)
    arms = sorted({value.arm for point in points for value in point.arms})
    figure = _dots(points[0], arms) if len(points) == 1 else _lines(points, arms)
    how = (
        "Each at its best other settings, at the same rank: what has more matrices trains more parameters."
        if points[0].r is not None
        else "Each at the same number of trained parameters, interpolated between the two nearest configurations."
    )
    rows = [_row(point, value) for point in points for value in point.arms]
    said = "" if points[0].r is not None else f"{sentence} "
    words = f"{said}{how} Whiskers: 95% intervals, where a noise floor was measured."
    return Panel(key=key, title=title, words=words, figure=figure, table=Table(HEADERS, rows))


def _place(point: Comparison) -> float:
    place = point.r if point.r is not None else point.trainable_params
    assert place is not None, "a comparison is at a rank or at a budget"
    return float(place)


def _place_text(point: Comparison) -> str:
    return f"r = {point.r}" if point.r is not None else f"{count_text(_place(point))} parameters"


def _hover(point: Comparison, value: ArmValue) -> str:
    trials = " and ".join(str(number) for number in value.numbers)
    worse = {True: ", shown to be worse", False: ", not shown to be worse", None: ", not tested"}[value.known]
    known = "" if value is point.arms[0] else worse
    return (
        f"{plot_text(value.arm)}, {_place_text(point)}: {nats(value.value)} nats per token<br>trial {trials}; "
        f"{nats(value.difference)} above the best{known}"
    )


def _dots(point: Comparison, arms: Sequence[str]) -> go.Figure:
    """All arms at one place: one line each, best on top."""
    figure = blank_figure(f"eval_loss at {_place_text(point)} (nats per token)", "")
    for value in point.arms:
        index = arms.index(value.arm)
        figure.add_scatter(
            x=[value.value],
            y=[plot_text(value.arm)],
            error_x=error_bars([value.value], [value.interval]),
            mode="markers",
            marker={"color": color_of(index), "symbol": symbol_of(index), "size": 10},
            name=plot_text(value.arm),
            showlegend=False,
            text=[_hover(point, value)],
            hoverinfo="text",
        )
    set_height(figure, 130 + 40 * len(point.arms))
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    return figure


def _lines(points: Sequence[Comparison], arms: Sequence[str]) -> go.Figure:
    """Arms over ranks or budgets: one line each."""
    by_rank = points[0].r is not None
    figure = blank_figure("rank r (log2 scale)" if by_rank else "trained parameters (log scale)", LOSS_TITLE)
    for index, arm in enumerate(arms):
        mine = [(point, value) for point in points for value in point.arms if value.arm == arm]
        shift = 2 ** (0.08 * (index - (len(arms) - 1) / 2)) if by_rank else 1.0
        losses = [value.value for _, value in mine]
        figure.add_scatter(
            x=[_place(point) * shift for point, _ in mine],
            y=losses,
            error_y=error_bars(losses, [value.interval for _, value in mine]),
            mode="lines+markers",
            line={"color": color_of(index), "width": 1.5},
            marker={"color": color_of(index), "symbol": symbol_of(index), "size": 8},
            name=plot_text(arm),
            text=[_hover(point, value) for point, value in mine],
            hoverinfo="text",
        )
    places = [_place(point) for point in points]
    figure.update_xaxes(log2_axis(places) if by_rank else decimal_axis(places))
    return figure


HEADERS = [
    "at",
    "arm",
    "loss, nats",
    "95% interval",
    "settings tried",
    "above the best, nats",
    "shown to be worse",
    "trials",
]


def _row(point: Comparison, value: ArmValue) -> list[Cell]:
    return [
        Cell(_place_text(point), repr(_place(point))),
        text_cell(value.arm),
        number_cell(value.value, nats),
        interval_cell(value.interval),
        number_cell(value.tried),
        number_cell(value.difference, nats),
        text_cell("best") if value is point.arms[0] else yes_cell(value.known),
        text_cell(", ".join(map(str, value.numbers))),
    ]
