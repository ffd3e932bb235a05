"""Pareto fronts with their uncertainty, and forgetting against gain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.wording import (
    config_label,
    measure_text,
    nats,
    plural,
    targets_text,
    value_and_unit,
    value_name,
)
from lora_lab.figures.cells import Cell, Table, interval_cell, measure_cell, number_cell, text_cell, yes_cell
from lora_lab.figures.style import (
    GRAY,
    VERMILION,
    Panel,
    axis_of,
    blank_figure,
    color_of,
    decimal_axis,
    error_bars,
    plot_text,
    symbol_of,
    target_names,
    vertical,
)
from lora_lab.study.measures import MEASURES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import plotly.graph_objects as go

    from lora_lab.analysis.forgetting import ForgettingPoint, ForgettingTrade
    from lora_lab.analysis.pareto import Front, FrontMember
    from lora_lab.study.results import TrialResult


def pareto_panel(front: Front, results: Sequence[TrialResult]) -> Panel:
    """A front over one cost: configurations by target set; filled on the front, hollow on it in some draws."""
    cost = front.axes[1]
    judged, measure, axis = MEASURES[front.axes[0]], MEASURES[cost], axis_of(MEASURES[cost])
    key, title = f"front-{cost.replace('_', '-')}", f"{value_name(judged).capitalize()} against {measure.label}"
    figure = blank_figure(axis.title, axis_of(judged).title)
    on_front = [member for member in front.members if member.on_front]
    figure.add_scatter(
        x=[member.values[1] / axis.size for member in on_front],
        y=[member.values[0] for member in on_front],
        mode="lines",
        line={"color": GRAY, "shape": "hv", "width": 2},
        name="Pareto front",
        hoverinfo="skip",
    )
    spots = _spots(front, results)
    for targets, index in {spot.targets: spot.index for spot in spots}.items():
        _draw(figure, [spot for spot in spots if spot.targets == targets], targets, index, cost)
    if axis.log:
        figure.update_xaxes(decimal_axis([spot.cost for spot in spots]))
    words = (
        f"{vertical(judged)} and left is better. Filled: no configuration beats it on both; hollow: so in some draws "
        f"of the noise; faint: beaten. {_volume(front)}"
    )
    labels = {result.number: config_label(result.config, result.params) for result in results}
    rows = [_row(front, member, labels) for member in front.members]
    headers = [
        "trial",
        "configuration",
        f"{value_name(judged)}, {judged.distance_unit}",
        measure.label,
        "on the front",
        "share of draws",
    ]
    return Panel(key=key, title=title, words=words, figure=figure, table=Table(headers, rows))


@dataclass(frozen=True, slots=True)
class _Spot:
    """A configuration on the plane of cost and loss."""

    targets: str
    index: int
    """Of the target set, which decides its color."""
    loss: float
    cost: float
    look: Literal["filled", "hollow", "faint"]
    words: str


def _spots(front: Front, results: Sequence[TrialResult]) -> list[_Spot]:
    members = {member.number: member for member in front.members}
    names = target_names(results)
    spots = []
    judged = MEASURES[front.axes[0]]
    for group in replicate_groups(results, judged):
        spent, member = group.metric_mean(front.axes[1]), members.get(group.number)
        if spent is None:
            continue
        targets = plot_text(targets_text(group.config.lora))
        look: Literal["filled", "hollow", "faint"] = (
            "faint" if member is None else "filled" if member.on_front else "hollow"
        )
        sure = "" if member is None or member.probability is None else f"; {_sure(member.probability)}"
        words = (
            f"trial {group.number}: {plot_text(group.label)}<br>{value_and_unit(judged, group.value)} "
            f"({plural(len(group.values), 'run')}), {measure_text(MEASURES[front.axes[1]], spent)}{sure}"
        )
        spots.append(_Spot(targets, names.index(targets), group.value, spent, look, words))
    return spots


def _sure(probability: float) -> str:
    return f"on the front in {100 * probability:.0f}% of draws"


def _volume(front: Front) -> str:
    share = f"The front dominates {100 * front.hypervolume:.1f}% of the box between the best and worst values seen"
    if front.hypervolume_interval is None:
        return f"{share}. No noise floor was measured, so how sure the front is, is not known."
    low, high = front.hypervolume_interval
    return f"{share} (95% interval {100 * low:.1f}% to {100 * high:.1f}%, by redrawing the noise between seeds)."


def _draw(figure: go.Figure, spots: Sequence[_Spot], targets: str, index: int, cost: str) -> None:
    for look, suffix, opacity in (("faint", "", 0.35), ("hollow", "-open", 1.0), ("filled", "", 1.0)):
        mine = [spot for spot in spots if spot.look == look]
        if mine:
            figure.add_scatter(
                x=[spot.cost / axis_of(MEASURES[cost]).size for spot in mine],
                y=[spot.loss for spot in mine],
                mode="markers",
                name=targets,
                legendgroup=targets,
                showlegend=look == max(spot.look for spot in spots),
                marker={"color": color_of(index), "symbol": symbol_of(index) + suffix, "size": 10},
                opacity=opacity,
                text=[spot.words for spot in mine],
                hoverinfo="text",
            )


def _row(front: Front, member: FrontMember, labels: Mapping[int, str]) -> list[Cell]:
    return [
        number_cell(member.number),
        text_cell(labels.get(member.number, ""), "reason"),
        measure_cell(MEASURES[front.axes[0]], member.values[0]),
        measure_cell(MEASURES[front.axes[1]], member.values[1]),
        yes_cell(member.on_front),
        number_cell(member.probability, lambda share: f"{100 * share:.0f}%"),
    ]


def forgetting_against_gain(trade: ForgettingTrade | None, base_forgetting: float | None) -> Panel:
    """What general text lost against what the task won, with intervals; the front is joined."""
    key, title = "forgetting-by-gain", "What it forgets for what it learns"
    if trade is None:
        return Panel(key=key, title=title, words="Forgetting was not measured.")
    figure = blank_figure("gain on held-out text (nats per token)", "forgetting (nats per token)")
    front = sorted((point for point in trade.points if point.on_front), key=lambda point: point.gain)
    figure.add_scatter(
        x=[point.gain for point in front],
        y=[point.forgetting for point in front],
        mode="lines",
        line={"color": GRAY, "width": 2},
        name="front",
        hoverinfo="skip",
    )
    names = sorted({point.targets for point in trade.points})
    for index, name in enumerate(names):
        _gains(figure, [point for point in trade.points if point.targets == name], name, index)
    figure.add_hline(y=0, line={"color": VERMILION, "width": 1})
    base = "" if base_forgetting is None else f" (the bare base: {nats(base_forgetting)} nats per token)"
    words = (
        f"{trade.sentence} Up is bad, right is good. Forgetting is the loss on general text after training minus "
        f"before{base}; below 0 nothing was forgotten."
    )
    table = Table(FORGETTING_HEADERS, [_gain_row(point) for point in trade.points])
    return Panel(key=key, title=title, words=words, figure=figure, table=table)


def _gains(figure: go.Figure, points: Sequence[ForgettingPoint], name: str, index: int) -> None:
    figure.add_scatter(
        x=[point.gain for point in points],
        y=[point.forgetting for point in points],
        error_x=error_bars([p.gain for p in points], [p.gain_interval for p in points]),
        error_y=error_bars([p.forgetting for p in points], [p.forgetting_interval for p in points]),
        mode="markers",
        marker={"color": color_of(index), "symbol": symbol_of(index), "size": 9},
        name=plot_text(name),
        text=[
            f"trial {p.number}: r={p.r} {plot_text(p.targets)}, layers {plot_text(p.layers)}<br>gain {nats(p.gain)}, "
            f"forgetting {nats(p.forgetting)} nats per token, {plural(p.runs, 'run')}"
            for p in points
        ],
        hoverinfo="text",
    )


FORGETTING_HEADERS = [
    *("trial", "r", "targets", "layers", "runs", "gain, nats", "gain, 95%", "forgetting, nats", "forgetting, 95%"),
    "on the front",
]


def _gain_row(point: ForgettingPoint) -> list[Cell]:
    return [
        number_cell(point.number),
        number_cell(point.r),
        text_cell(point.targets),
        text_cell(point.layers),
        number_cell(point.runs),
        number_cell(point.gain, nats),
        interval_cell(point.gain_interval),
        number_cell(point.forgetting, nats),
        interval_cell(point.forgetting_interval),
        yes_cell(point.on_front),
    ]
