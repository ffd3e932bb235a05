"""Peak memory: against rank, against what was predicted, and what it is made of."""

from __future__ import annotations

import statistics
from itertools import cycle
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import finished, measured
from lora_lab.analysis.wording import plural, quantization_text
from lora_lab.common.sizes import bytes_text
from lora_lab.figures.losses import scatter_by_targets
from lora_lab.figures.style import (
    BLUE,
    GRAY,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    Panel,
    blank_figure,
    log2_axis,
    set_height,
    targets_of,
)
from lora_lab.study.measures import MEASURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from lora_lab.study.results import TrialResult

COLORS = (GRAY, SKY, BLUE, GREEN, ORANGE, PINK, VERMILION)
"""Of the parts of the peak, in the order of the table of measures."""
MOST_BARS = 14
UNNAMED = 0.005
"""A rest below this share of the peak is rounding."""


def _unit(sizes: Sequence[float]) -> tuple[str, float]:
    return ("GiB", 2.0**30) if max(sizes) >= 2**30 else ("MiB", 2.0**20)


def _peaks(results: Sequence[TrialResult]) -> list[tuple[TrialResult, float]]:
    return [
        (result, peak) for result, _ in finished(results) if (peak := measured(result, "peak_memory_bytes")) is not None
    ]


def memory_by_rank(results: Sequence[TrialResult]) -> Panel:
    """Peak memory against rank by target set."""
    key, title = "memory-by-rank", "Peak memory against rank"
    peaks = _peaks(results)
    if not peaks:
        return Panel(key=key, title=title, words="No peak memory was measured.")
    unit, size = _unit([peak for _, peak in peaks])
    points = [(result, float(result.config.lora.r), peak / size) for result, peak in peaks]
    figure = blank_figure("rank r (log2 scale)", f"peak memory ({unit})")
    scatter_by_targets(figure, points, side_by_side=True)
    figure.update_xaxes(log2_axis([rank for _, rank, _ in points]))
    words = "Each trial's peak while it trained. The axis does not begin at zero."
    return Panel(key=key, title=title, words=words, figure=figure)


def predicted_memory(results: Sequence[TrialResult]) -> Panel:
    """Peak memory as measured against what was predicted before training, with the line of equality."""
    key, title = "predicted-memory", "Memory: predicted against measured"
    pairs = [
        (result, predicted, peak)
        for result, peak in _peaks(results)
        if (predicted := measured(result, "predicted_memory_bytes")) is not None
    ]
    if not pairs:
        return Panel(key=key, title=title, words="No memory was predicted for trials that were measured: not drawn.")
    unit, size = _unit([value for _, predicted, peak in pairs for value in (predicted, peak)])
    figure = blank_figure(f"predicted ({unit})", f"measured ({unit})")
    points = [(result, predicted / size, peak / size) for result, predicted, peak in pairs]
    ends = [min(min(x, y) for _, x, y in points), max(max(x, y) for _, x, y in points)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": GRAY, "dash": "dash"}, name="equal", hoverinfo="skip"
    )
    scatter_by_targets(figure, points)
    errors = [abs(100 * (predicted - peak) / peak) for _, predicted, peak in pairs]
    words = (
        f"{plural(len(pairs), 'trial')}: the prediction is off by {statistics.median(errors):.2g}% in the median, by "
        f"{max(errors):.2g}% at worst. Above the line, more was needed than predicted."
    )
    return Panel(key=key, title=title, words=words, figure=figure)


def memory_terms(results: Sequence[TrialResult]) -> Panel:
    """What the peak of each kind of trial is made of, as stacked bars."""
    key, title = "memory-terms", "What the memory goes into"
    parts_of_peak = {name: measure.label for name, measure in MEASURES.items() if measure.term is not None}
    kinds: dict[str, tuple[TrialResult, float]] = {}
    for result, peak in sorted(_peaks(results), key=lambda pair: (targets_of(pair[0]), pair[0].config.lora.r)):
        name = _kind(result)
        kinds[name] = max(kinds.get(name, (result, peak)), (result, peak), key=lambda pair: pair[1])
    if not kinds or not any(term in result.metrics for result, _ in kinds.values() for term in parts_of_peak):
        return Panel(key=key, title=title, words="No parts of the peak memory were recorded: not drawn.")
    step = -(-len(kinds) // MOST_BARS)
    names = list(kinds)[::step]
    unit, size = _unit([kinds[name][1] for name in names])
    figure = blank_figure(f"peak memory ({unit})", "")
    rest = {name: kinds[name][1] for name in names}
    for (term, label), color in zip(parts_of_peak.items(), cycle(COLORS), strict=False):
        parts = {name: kinds[name][0].metrics.get(term, 0.0) for name in names}
        if any(parts.values()):
            rest = {name: rest[name] - part for name, part in parts.items()}
            _bars(figure, parts, label, color, size)
    if any(left > UNNAMED * kinds[name][1] for name, left in rest.items()):
        _bars(figure, {name: max(0.0, left) for name, left in rest.items()}, "not recorded apart", "#c0c0c0", size)
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    set_height(figure, 120 + 26 * len(names))
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    left_out = f" Every {step}th of {len(kinds)} kinds is shown." if step > 1 else ""
    words = f"The largest peak of each combination of targets, rank and batch size, by what it consists of.{left_out}"
    return Panel(key=key, title=title, words=words, figure=figure, wide=True)


def _kind(result: TrialResult) -> str:
    config = result.config
    base = "" if config.model.quantization == "none" else f", {quantization_text(config.model)}"
    return f"{targets_of(result)} r={config.lora.r}, batch {config.training.per_device_train_batch_size}{base}"


def _bars(figure: go.Figure, parts: dict[str, float], label: str, color: str, size: float) -> None:
    figure.add_bar(
        orientation="h",
        y=list(parts),
        x=[part / size for part in parts.values()],
        name=label,
        marker={"color": color},
        text=[f"{name}<br>{label}: {bytes_text(part)}" for name, part in parts.items()],
        hoverinfo="text",
        textposition="none",
    )
