"""Rank and alpha with their uncertainty: smallest adequate rank, response to the scaling, rules of thumb scored."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import (
    count_text,
    measure_interval,
    nats,
    number_text,
    plural,
    rate_text,
    value_and_unit,
    value_name,
    value_text,
)
from lora_lab.figures.cells import Cell, Table, interval_cell, measure_cell, number_cell, p_cell, text_cell
from lora_lab.figures.style import (
    BLUE,
    GRAY,
    ORANGE,
    Panel,
    axis_of,
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

    from lora_lab.analysis.adequate_rank import RankCurve, RankPoint
    from lora_lab.analysis.scale import RuleScore, ScalePoint, ScaleResponse
    from lora_lab.study.measures import Measure

LOSS_TITLE = "eval_loss (nats per token)"


def _arm(curve: RankCurve) -> str:
    return curve.targets if curve.layers == "all" else f"{curve.targets}, layers {curve.layers}"


def adequate_ranks(curves: Sequence[RankCurve]) -> Panel:
    """Loss against rank with intervals, each rank at its own best settings; the smallest adequate rank is ringed."""
    key, title = "adequate-rank", "Smallest adequate rank"
    if not curves:
        return Panel(key=key, title=title, words="No target set has finished trials at two ranks.")
    figure = blank_figure("rank r (log2 scale)", axis_of(curves[0].measure).title)
    for index, curve in enumerate(curves):
        _rank_line(figure, curve, index, len(curves))
    figure.update_xaxes(log2_axis([float(point.r) for curve in curves for point in curve.points]))
    words = (
        "Each rank at the best learning rate and alpha that were tried for it. Whiskers: 95% intervals, where a noise "
        "floor was measured. Ringed: the smallest adequate rank. "
    ) + " ".join(curve.sentence for curve in curves)
    rows = [_rank_row(curve, point) for curve in curves for point in curve.points]
    marked = [
        index
        for index, (curve, point) in enumerate((curve, point) for curve in curves for point in curve.points)
        if point.r == curve.smallest_adequate_r
    ]
    return Panel(
        key=key, title=title, words=words, figure=figure, table=Table(_rank_headers(curves[0].measure), rows, marked)
    )


def _rank_line(figure: go.Figure, curve: RankCurve, index: int, count: int) -> None:
    shift = 2 ** (0.1 * (index - (count - 1) / 2))
    name = plot_text(_arm(curve))
    values = [point.value for point in curve.points]
    figure.add_scatter(
        x=[point.r * shift for point in curve.points],
        y=values,
        error_y=error_bars(values, [point.interval for point in curve.points]),
        mode="lines+markers",
        line={"color": color_of(index), "width": 1.5},
        marker={"color": color_of(index), "symbol": symbol_of(index), "size": 8},
        name=name,
        legendgroup=name,
        text=[_rank_hover(curve.measure, name, point) for point in curve.points],
        hoverinfo="text",
    )
    chosen = next(point for point in curve.points if point.r == curve.smallest_adequate_r)
    figure.add_scatter(
        x=[chosen.r * shift],
        y=[chosen.value],
        mode="markers",
        marker={"color": color_of(index), "symbol": "circle-open", "size": 18, "line": {"width": 2}},
        showlegend=False,
        legendgroup=name,
        hoverinfo="skip",
    )


def _rank_hover(measure: Measure, name: str, point: RankPoint) -> str:
    return (
        f"{name}, r={point.r}: {value_and_unit(measure, point.value)}<br>trial {point.number}, "
        f"lr {rate_text(point.learning_rate)}, {plural(point.runs, 'run')}, best of {point.tried}"
    )


def _rank_headers(measure: Measure) -> list[str]:
    unit = measure.distance_unit
    return [
        *("targets", "r", "trial", "lr", f"{value_name(measure)}, {unit}", "95% interval", "runs", "settings tried"),
        *("rates tried", f"{measure.worse} best, {unit}", "corrected p", "decision", "params"),
    ]


def _rank_row(curve: RankCurve, point: RankPoint) -> list[Cell]:
    return [
        text_cell(_arm(curve)),
        number_cell(point.r),
        number_cell(point.number),
        number_cell(point.learning_rate, rate_text),
        measure_cell(curve.measure, point.value),
        interval_cell(point.interval, partial(measure_interval, curve.measure)),
        number_cell(point.runs),
        number_cell(point.tried),
        number_cell(point.rates),
        measure_cell(curve.measure, point.difference),
        p_cell(point.p),
        text_cell(point.decision, "wrap"),
        number_cell(point.trainable_params, count_text),
    ]


def scale_response(response: ScaleResponse | None) -> Panel:
    """Loss against scaling * learning rate, by rank; and how much of the loss each quantity explains."""
    key, title = "scale-response", "Loss against scaling times learning rate"
    points = response.points if response else ()
    if response is None or len({point.scaled_rate for point in points}) < 3:
        return Panel(key=key, title=title, words="Fewer than three different products were tried to the end.")
    figure = blank_figure("alpha / r x learning rate (log scale)", LOSS_TITLE)
    ranks = sorted({point.r for point in points})
    for index, rank in enumerate(ranks):
        _scale_points(figure, [point for point in points if point.r == rank], rank, index)
    figure.update_xaxes(decimal_axis([point.scaled_rate for point in points], rate_text))
    shares = ", ".join(f"{one.quantity} {100 * one.share:.0f}%" for one in response.explained)
    words = (
        "The scaling multiplies the update that the learning rate moves: alpha alone says little. "
        + (
            f"Share of the variance of the loss that a parabola over one quantity explains: {shares}. The effects of "
            "the others count against it, so a weak one beside a strong one comes out too small."
            if shares
            else ""
        )
    ).strip()
    rows = [
        [text_cell(one.quantity), number_cell(one.share, _percent), number_cell(one.optimum)]
        for one in response.explained
    ]
    table = Table(["quantity (log scale)", "variance explained", "best at"], rows) if rows else None
    return Panel(key=key, title=title, words=words, figure=figure, table=table)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _scale_points(figure: go.Figure, points: Sequence[ScalePoint], rank: int, index: int) -> None:
    figure.add_scatter(
        x=[point.scaled_rate for point in points],
        y=[point.value for point in points],
        mode="markers",
        name=f"r = {rank}",
        marker={"color": color_of(index), "symbol": symbol_of(index), "size": 9},
        text=[
            f"trial {point.number}: {nats(point.value)} nats per token<br>r={point.r} alpha={number_text(point.alpha)} "
            f"{plot_text(value_text(point.targets))}, lr {rate_text(point.learning_rate)}, {plural(point.runs, 'run')}"
            for point in points
        ],
        hoverinfo="text",
    )


def rules_of_thumb(scores: Sequence[RuleScore]) -> Panel:
    """What each rule for alpha loses against the best scaling that was tried at the same rank."""
    key, title = "rules-of-thumb", "Rules of thumb for alpha, scored"
    known = [score for score in scores if score.regret is not None]
    if not known:
        return Panel(key=key, title=title, words="No rank was tried at two scalings: the rules cannot be scored.")
    figure = blank_figure("lost against the best scaling (nats per token)", "")
    mean, worst = [score.regret or 0.0 for score in known], [score.worst or 0.0 for score in known]
    whiskers = error_bars(mean, [_two_errors(score) for score in known])
    for name, values, look in (
        ("mean over ranks", mean, {"color": BLUE, "symbol": "circle", "size": 10}),
        ("worst rank", worst, {"color": ORANGE, "symbol": "diamond-open", "size": 10}),
    ):
        figure.add_scatter(
            x=values,
            y=[score.rule for score in known],
            mode="markers",
            name=name,
            marker=look,
            error_x=whiskers if values is mean else None,
            text=[
                f"{score.rule}: {name} {nats(value)} nats, {_coverage(score)}"
                for score, value in zip(known, values, strict=True)
            ],
            hoverinfo="text",
        )
    figure.add_vline(x=0, line={"color": GRAY, "width": 1})
    set_height(figure, 150 + 34 * len(known))
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    words = (
        "0 is the best scaling that was tried at each rank, each scaling at its best learning rate. Whiskers: two "
        "standard errors of the noise floor; as a distance to the best of several it is never negative, and they are "
        "no test. A rule counts only at ranks where it was tried."
    )
    rows = [
        [
            text_cell(score.rule),
            number_cell(score.regret, nats),
            number_cell(score.noise, nats),
            number_cell(score.worst, nats),
            text_cell(_coverage(score)),
        ]
        for score in scores
    ]
    headers = ["rule", "mean loss against the best, nats", "standard error, nats", "worst rank, nats", "tried at"]
    return Panel(key=key, title=title, words=words, figure=figure, wide=True, table=Table(headers, rows))


def _two_errors(score: RuleScore) -> tuple[float, float] | None:
    if score.noise is None or score.regret is None:
        return None
    return score.regret - 2 * score.noise, score.regret + 2 * score.noise


def _coverage(score: RuleScore) -> str:
    return f"{len(score.ranks)} of {plural(score.of, 'rank')}"
