"""Parallel coordinates as plain SVG lines.

Plotly's own `Parcoords` needs WebGL and `eval`: without them it shows an advertisement for a web site, the
report's content policy forbids the second, and neither prints.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import finished
from lora_lab.analysis.wording import setting_text
from lora_lab.figures.style import BLUE, GRAY, ORANGE, Panel, blank_figure, hover, plot_text
from lora_lab.study.section import Trait
from lora_lab.study.trial_settings import settings_with, value_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from lora_lab.study.results import TrialResult
    from lora_lab.study.sweep import Value

MOST_TICKS = 8
Third = tuple[str, str, float]
"""Name, color and line width."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One vertical axis: where each trial crosses it (0 to 1), and its ticks."""

    title: str
    heights: list[float]
    ticks: list[tuple[float, str]]


def _numeric_axis(name: str, values: Sequence[float]) -> Axis:
    scale = math.log if name in settings_with(Trait.RATIO) and min(values) > 0 else float
    low, high = scale(min(values)), scale(max(values))
    span = (high - low) or 1.0

    def height(value: float) -> float:
        return (scale(value) - low) / span

    marks = sorted(set(values))
    if len(marks) > MOST_TICKS:
        marks = [marks[0], marks[-1]]
    return Axis(name, [height(value) for value in values], [(height(mark), setting_text(name, mark)) for mark in marks])


def _named_axis(name: str, values: Sequence[Value | None]) -> Axis:
    names = sorted({setting_text(name, value) for value in values})
    at = {text: index / max(1, len(names) - 1) for index, text in enumerate(names)}
    ticks = [(height, plot_text(text)) for text, height in at.items()]
    return Axis(name, [at[setting_text(name, value)] for value in values], ticks)


def _axis(name: str, values: Sequence[Value | None]) -> Axis:
    numbers = [float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return _numeric_axis(name, numbers) if len(numbers) == len(values) else _named_axis(name, values)


def _axes(points: Sequence[tuple[TrialResult, float]]) -> list[Axis]:
    searched = dict.fromkeys(name for result, _ in points for name in result.params)
    columns = {name: [value_of(result.config, name) for result, _ in points] for name in searched}
    varied = [_axis(name, values) for name, values in columns.items() if len(set(map(repr, values))) > 1]
    return [*varied, _numeric_axis("eval_loss", [value for _, value in points])] if varied else []


def parallel_coordinates(results: Sequence[TrialResult]) -> Panel:
    """One line per finished trial through the values of all that varied, colored by thirds of the loss."""
    key, title = "parallel-coordinates", "Everything at once"
    points = sorted(finished(results), key=lambda pair: -pair[1])
    axes = _axes(points) if len(points) > 1 else []
    if not axes:
        words = "Fewer than two finished trials, or nothing varied between them: not drawn."
        return Panel(key=key, title=title, words=words)
    figure = blank_figure("", "")
    for third, members in _thirds(len(points)).items():
        _lines(figure, [(index, points[index][0]) for index in members], axes, third)
    _rulers(figure, axes)
    words = "One line per finished trial. Click a name in the legend to hide or show that third."
    return Panel(key=key, title=title, words=words, figure=figure, wide=True)


def _thirds(count: int) -> dict[Third, range]:
    """Worst first, so that the best are drawn on top."""
    best, worst = count - math.ceil(count / 3), count // 3
    return {
        ("worst third", ORANGE, 1.2): range(worst),
        ("middle", GRAY, 1.2): range(worst, best),
        ("best third", BLUE, 2.4): range(best, count),
    }


def _lines(figure: go.Figure, members: Sequence[tuple[int, TrialResult]], axes: Sequence[Axis], third: Third) -> None:
    label, color, width = third
    for position, (index, result) in enumerate(members):
        figure.add_scatter(
            x=list(range(len(axes))),
            y=[axis.heights[index] for axis in axes],
            mode="lines+markers",
            line={"color": color, "width": width},
            marker={"size": 5},
            opacity=0.85,
            name=label,
            legendgroup=label,
            showlegend=position == 0,
            text=hover(result),
            hoverinfo="text",
        )


def _rulers(figure: go.Figure, axes: Sequence[Axis]) -> None:
    for position, axis in enumerate(axes):
        figure.add_vline(x=position, line={"color": GRAY, "width": 1}, layer="below")
        figure.add_annotation(x=position, y=1.12, text=f"<b>{axis.title}</b>", showarrow=False)
        last = position == len(axes) - 1
        for height, text in axis.ticks:
            figure.add_annotation(
                x=position,
                y=height,
                text=text,
                showarrow=False,
                xanchor="left" if not last else "right",
                xshift=6 if not last else -6,
                font={"size": 12},
            )
    figure.update_xaxes(visible=False, range=[-0.15, len(axes) - 0.85])
    figure.update_yaxes(visible=False, range=[-0.06, 1.2])
    figure.update_layout(margin={"l": 8, "r": 8, "t": 30, "b": 8}, legend={"y": -0.02})
