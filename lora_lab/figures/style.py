"""The look that all figures share: colors that survive color blindness, and text that CSS can recolor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from lora_lab.analysis.selection import measured
from lora_lab.analysis.wording import count_text, nats, targets_text, trial_label

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.figures.cells import Table
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult

BLUE, ORANGE, GREEN, PINK, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)
"""Okabe and Ito's colors without black and yellow, which vanish on a dark or a white page."""
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x", "cross")
GRAY = "#808080"
LEGEND_DISTANCE = 62
"""Pixels from the plot down to the legend: room for ticks and the axis title."""
GRID = "rgba(128,128,128,0.25)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A figure with its title and the words that say how to read it, or why there is none."""

    key: str
    title: str
    words: str
    figure: go.Figure | None = None
    wide: bool = False
    """Scrolls sideways on a narrow screen instead of being squeezed."""
    table: Table | None = None
    """The numbers of the figure, or what is shown instead of one."""

    @property
    def is_shown(self) -> bool:
        """Whether there is more than words that say why there is nothing."""
        return self.figure is not None or self.table is not None


def blank_figure(x_title: str, y_title: str) -> go.Figure:
    """An empty figure on a transparent ground."""
    axis: dict[str, Any] = {"gridcolor": GRID, "zeroline": False, "automargin": True, "linecolor": GRID}
    return go.Figure(
        layout={
            "template": "none",
            "height": 400,
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": GRAY},
            "margin": {"l": 56, "r": 16, "t": 20, "b": 48},
            "xaxis": {**axis, "title": {"text": x_title, "standoff": 8}},
            "yaxis": {**axis, "title": {"text": y_title, "standoff": 8}},
            "hoverlabel": {"bgcolor": "#222", "font": {"color": "#fff"}, "align": "left"},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": GRAY, "activecolor": BLUE},
            "legend": {"orientation": "h", "yanchor": "top", "y": -0.18, "x": 0, "xanchor": "left"},
        }
    )


def set_height(figure: go.Figure, height: int) -> None:
    """Give a figure another height than the usual one; the legend keeps its distance from the axis."""
    plot = height - figure.layout.margin.t - figure.layout.margin.b
    figure.update_layout(height=height, legend={"y": -LEGEND_DISTANCE / plot})


def whole_epochs(figure: go.Figure, epochs: Sequence[float]) -> None:
    """Ticks at whole epochs, where these are few."""
    if max(epochs) <= 12:
        figure.update_xaxes(dtick=1)


def plot_text(text: str) -> str:
    """Foreign text for plotly, which reads a subset of HTML in names, labels and hovers."""
    return escape(text, quote=False)


def targets_of(result: TrialResult) -> str:
    """What a trial's target set is called in legends."""
    return plot_text(targets_text(result.config.lora))


def target_names(results: Sequence[TrialResult]) -> list[str]:
    """All target sets in a fixed order, which decides their colors in every figure."""
    return sorted({targets_of(result) for result in results})


def color_of(index: int) -> str:
    """Color of the n-th target set."""
    return PALETTE[index % len(PALETTE)]


def symbol_of(index: int) -> str:
    """Marker of the n-th target set; with the color it tells 36 sets apart."""
    return SYMBOLS[(index + index // len(PALETTE)) % len(SYMBOLS)]


def hover(result: TrialResult) -> str:
    """What a trial's point says under the mouse."""
    value = measured(result)
    loss = "" if value is None else f"<br>eval_loss {nats(value)} nats per token"
    return f"trial {result.number}: {result.state}{loss}<br>{plot_text(trial_label(result.config, result.params))}"


def log2_axis(values: Sequence[float]) -> dict[str, Any]:
    """Settings of a logarithmic axis with a tick at each of the values tried."""
    ticks = sorted(set(values))
    return {
        "type": "log",
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
        "minor": {"ticks": ""},
    }


def error_bars(values: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> dict[str, Any]:
    """The whiskers of points whose intervals need not be symmetric; none where there is no interval."""
    if not any(intervals):
        return {"visible": False}
    ends = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, (_, high) in zip(values, ends, strict=True)],
        "arrayminus": [value - low for value, (low, _) in zip(values, ends, strict=True)],
        "thickness": 1.4,
        "width": 5,
    }


def decimal_axis(values: Sequence[float], show: Callable[[float], str] = count_text) -> dict[str, Any]:
    """Settings of a logarithmic axis with few round ticks: the nearer the values, the more of each power of ten."""
    low, high = min(values), max(values)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 3, 4, 5, 6, 8) if high < 4 * low else (1, 2, 5) if high < 1000 * low else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps if low / 2 <= step * 10.0**power <= 2 * high]
    return {"type": "log", "tickmode": "array", "tickvals": ticks, "ticktext": [show(tick) for tick in ticks]}


@dataclass(frozen=True, slots=True)
class Axis:
    """How a measure is drawn."""

    title: str
    size: float
    """Of the axis' unit, in the unit of the values."""
    log: bool


def axis_of(measure: Measure) -> Axis:
    """The axis of a measure: counts on a logarithmic scale, memory in MiB."""
    if measure.style == "count":
        return Axis(f"{measure.label} (log scale)", 1.0, log=True)
    unit, size = {"bytes": ("MiB", 2.0**20), "seconds": ("seconds", 1.0)}.get(measure.style, (measure.unit, 1.0))
    return Axis(f"{measure.label} ({unit})" if unit else measure.label, size, log=False)


def vertical(measure: Measure) -> str:
    """Which way a better value lies on the vertical axis."""
    return "Up" if measure.goal == "maximize" else "Down"


Reference = tuple[float, float, float]
"""eval_loss of the bare base and of the best, and the width of the tie, nats per token."""


@dataclass(frozen=True, slots=True)
class LossFrame:
    """The range of a loss axis, and what lies outside it."""

    low: float
    high: float
    hidden: int
    """Trials above the frame."""
    shows_base: bool


def loss_frame(values: Sequence[float], base_loss: float | None) -> LossFrame:
    """Frame the losses so that their differences show.

    Values that are worse than the base by more than a quarter of the best one's gain stay outside, and so
    does the base where it would squeeze the trials into less than half of the height. None: the base is not known.
    """
    low = min(values)
    if base_loss is None:
        pad = 0.07 * (max(values) - low) or 0.05
        return LossFrame(low - pad, max(values) + pad, 0, shows_base=False)
    ceiling = base_loss + 0.25 * (base_loss - low)
    kept = [value for value in values if value <= ceiling] or list(values)
    high = max(kept)
    shows_base = base_loss - high <= high - low or high == low
    top, bottom = (max(high, base_loss), min(low, base_loss)) if shows_base else (high, low)
    pad = 0.07 * (top - bottom) or 0.05
    return LossFrame(bottom - pad, top + pad, len(values) - len(kept), shows_base)


def draw_reference(figure: go.Figure, frame: LossFrame, reference: Reference | None) -> None:
    """Set the loss axis; draw the base as a line and the tie with the best as a band, where they are known."""
    figure.update_yaxes(range=[frame.low, frame.high])
    if reference is None:
        return
    base_loss, best, margin = reference
    if frame.shows_base:
        figure.add_hline(
            y=base_loss,
            line={"color": GRAY, "dash": "dash", "width": 1.5},
            annotation={"text": f"bare base {nats(base_loss)}", "font": {"size": 12}},
            annotation_position="bottom right",
        )
    if margin > 0:
        figure.add_hrect(
            y0=best, y1=best + margin, line_width=0, fillcolor=GREEN, opacity=0.22, layer="below", name="tie"
        )


def frame_words(frame: LossFrame, base_loss: float | None) -> str:
    """What the reader must know because the frame does not show it."""
    words = (
        "" if frame.shows_base or base_loss is None else f" The bare base ({nats(base_loss)}) lies outside the frame."
    )
    if frame.hidden:
        words += f" {frame.hidden} worse {'trial lies' if frame.hidden == 1 else 'trials lie'} above the frame."
    return words
