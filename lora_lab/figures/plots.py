"""Loss, memory and forgetting against rank, parameters and time: one function per figure of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.selection import finished, measured, search_trials
from lora_lab.analysis.tradeoff import pareto_front
from lora_lab.analysis.wording import nats, number_text, plural
from lora_lab.figures.style import (
    GRAY,
    VERMILION,
    Panel,
    blank_figure,
    color_of,
    draw_reference,
    frame_words,
    hover,
    log2_axis,
    loss_frame,
    symbol_of,
    target_names,
    targets_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from lora_lab.analysis.verdict import Findings
    from lora_lab.study.results import TrialResult

    Point = tuple[TrialResult, float, float]

LOSS_TITLE = "eval_loss (nats per token)"
NONE_FINISHED = "No trial finished, so there is nothing to draw."
MOST_RATIOS = 12
"""A heat map with more rows than this is unreadable."""


def _reference(findings: Findings) -> tuple[float, float, float]:
    """Base, best value and the width of the tie, in nats."""
    best = findings.best.value if findings.best else findings.base_loss
    return findings.base_loss, best, findings.margin


def _shifts(names: Sequence[str]) -> dict[str, float]:
    """Factors that put target sets side by side within a rank, so that no point hides another."""
    return {name: 2 ** (0.14 * (index - (len(names) - 1) / 2)) for index, name in enumerate(names)}


def _scatter(figure: go.Figure, points: Sequence[Point], *, side_by_side: bool = False) -> None:
    """Points by target set, on a rank axis `side_by_side`; retrainings are hollow."""
    names = target_names([result for result, _, _ in points])
    shifts = _shifts(names)
    for index, name in enumerate(names):
        for hollow in (False, True):
            mine = [p for p in points if targets_of(p[0]) == name and (p[0].replicate > 0) == hollow]
            if not mine:
                continue
            figure.add_scatter(
                x=[x * shifts[name] if side_by_side else x for _, x, _ in mine],
                y=[y for _, _, y in mine],
                mode="markers",
                name=name,
                legendgroup=name,
                showlegend=not hollow,
                text=[hover(result) for result, _, _ in mine],
                hoverinfo="text",
                marker={
                    "color": color_of(index),
                    "symbol": symbol_of(index) + ("-open" if hollow else ""),
                    "size": 9,
                },
            )


def loss_by_rank(results: Sequence[TrialResult], findings: Findings) -> Panel:
    """eval_loss against rank by target set, with the base and the tie; retrainings are hollow."""
    key, title = "loss-by-rank", "Loss against rank"
    points = finished(results)
    ranks = [float(result.config.lora.r) for result, _ in points]
    if not points:
        return Panel(key=key, title=title, words=NONE_FINISHED)
    if len(set(ranks)) == 1:
        return Panel(key=key, title=title, words=f"All finished trials have r = {ranks[0]:g}: not drawn.")
    figure = blank_figure("rank r (log2 scale)", LOSS_TITLE)
    again = [(r, value) for r in results if r.replicate and (value := measured(r)) is not None]
    _best_lines(figure, points)
    _scatter(figure, [(r, float(r.config.lora.r), v) for r, v in [*points, *again]], side_by_side=True)
    frame = loss_frame([value for _, value in points], findings.base_loss)
    draw_reference(figure, frame, *_reference(findings))
    figure.update_xaxes(log2_axis(ranks))
    words = (
        "Each point is a trial with its own alpha, learning rate and length; lines join each rank's best. "
        "Hollow: retrainings with fresh seeds. The green band holds what ties with the best."
    )
    return Panel(key=key, title=title, words=words + frame_words(frame, findings.base_loss), figure=figure)


def _best_lines(figure: go.Figure, points: Sequence[tuple[TrialResult, float]]) -> None:
    names = target_names([result for result, _ in points])
    for index, (name, shift) in enumerate(_shifts(names).items()):
        best: dict[int, float] = {}
        for result, value in points:
            if targets_of(result) == name:
                best[result.config.lora.r] = min(value, best.get(result.config.lora.r, value))
        figure.add_scatter(
            x=[rank * shift for rank in sorted(best)],
            y=[best[rank] for rank in sorted(best)],
            mode="lines",
            line={"color": color_of(index), "width": 1.5},
            opacity=0.6,
            legendgroup=name,
            showlegend=False,
            hoverinfo="skip",
        )


def rank_and_ratio(results: Sequence[TrialResult]) -> Panel:
    """Best eval_loss of every pair of rank and alpha / r; pairs that no finished trial has stay blank."""
    key, title = "rank-and-ratio", "Rank and alpha together"
    best: dict[tuple[float, int], tuple[float, TrialResult]] = {}
    for result, value in finished(results):
        cell = (round(result.config.lora.alpha / result.config.lora.r, 6), result.config.lora.r)
        best[cell] = min(best.get(cell, (value, result)), (value, result), key=lambda pair: pair[0])
    ratios, ranks = sorted({ratio for ratio, _ in best}), sorted({rank for _, rank in best})
    if not best:
        return Panel(key=key, title=title, words=NONE_FINISHED)
    if len(best) == 1 or len(ratios) > MOST_RATIOS:
        tried = f"{plural(len(ranks), 'rank')} and {plural(len(ratios), 'value')} of alpha / r"
        return Panel(key=key, title=title, words=f"Finished trials have {tried}: not drawn.")
    rows = [[best.get((ratio, rank)) for rank in ranks] for ratio in ratios]
    figure = blank_figure("rank r", "alpha / r")
    figure.add_heatmap(
        x=[str(rank) for rank in ranks],
        y=[number_text(ratio) for ratio in ratios],
        z=[[cell[0] if cell else None for cell in row] for row in rows],
        text=[[f"{cell[0]:.3f}" if cell else "" for cell in row] for row in rows],
        hovertext=[[hover(cell[1]) if cell else "not tried to the end" for cell in row] for row in rows],
        hoverinfo="text",
        texttemplate="%{text}",
        colorscale="Cividis",
        reversescale=True,
        xgap=3,
        ygap=3,
        colorbar={"title": {"text": "nats"}, "thickness": 12, "outlinewidth": 0},
    )
    figure.update_layout(height=130 + 62 * len(ratios), xaxis_type="category", yaxis_type="category")
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    words = "The best eval_loss (nats per token) of each pair; blank where no trial was trained to the end."
    return Panel(key=key, title=title, words=words, figure=figure)


def loss_by_parameters(results: Sequence[TrialResult], findings: Findings) -> Panel:
    """eval_loss against trained parameters, with the Pareto front as steps."""
    key, title = "loss-by-parameters", "Loss against trained parameters"
    points = [
        (result, params, value)
        for result, value in finished(results)
        if (params := measured(result, "trainable_params")) is not None
    ]
    if not points:
        return Panel(key=key, title=title, words=NONE_FINISHED)
    figure = blank_figure("trained parameters (log scale)", LOSS_TITLE)
    front = pareto_front(results)
    figure.add_scatter(
        x=[result.metrics["trainable_params"] for result in front],
        y=[result.metrics["eval_loss"] for result in front],
        mode="lines",
        line={"color": GRAY, "shape": "hv", "width": 2},
        name="Pareto front",
        hoverinfo="skip",
    )
    _scatter(figure, points)
    frame = loss_frame([value for _, _, value in points], findings.base_loss)
    draw_reference(figure, frame, *_reference(findings))
    figure.update_xaxes(type="log", dtick=1, exponentformat="SI")
    words = (
        "No trial beats one on the front with as few parameters. The cost is known before training; only the "
        "loss has to be measured." + frame_words(frame, findings.base_loss)
    )
    return Panel(key=key, title=title, words=words, figure=figure)


def learning_curves(results: Sequence[TrialResult], findings: Findings) -> Panel:
    """eval_loss over time: solid for trials that reached their end, dotted for the others."""
    key, title = "learning-curves", "Learning curves"
    trials = [result for result in search_trials(results) if result.curve]
    if not trials:
        return Panel(key=key, title=title, words="No trial was evaluated, so there is nothing to draw.")
    unit = _evaluation_unit(trials)
    figure = blank_figure(unit, LOSS_TITLE)
    names = target_names(trials)
    first = {targets_of(result): result.number for result in reversed(trials)}
    for result in trials:
        best = findings.best is not None and findings.best.number == result.number
        _curve(figure, result, unit, names.index(targets_of(result)), best=best)
        figure.data[-1].showlegend = first[targets_of(result)] == result.number
    frame = loss_frame([value for result in trials for value in result.curve.values()], findings.base_loss)
    draw_reference(figure, frame, *_reference(findings))
    words = "Solid: reached its end. Dotted: pruned or stopped. Thick: the best trial."
    return Panel(key=key, title=title, words=words + frame_words(frame, findings.base_loss), figure=figure)


def _evaluation_unit(trials: Sequence[TrialResult]) -> str:
    """What the numbers of a curve's points can be turned into, for all trials alike."""
    every = {result.config.training.eval_steps is None for result in trials}
    return "evaluation" if len(every) == 2 else "epoch" if every == {True} else "optimizer step"


def _curve(figure: go.Figure, result: TrialResult, unit: str, index: int, *, best: bool) -> None:
    evaluations = sorted(result.curve)
    scale = (result.config.training.eval_steps or 1) if unit == "optimizer step" else 1
    figure.add_scatter(
        x=[number * scale for number in evaluations],
        y=[result.curve[number] for number in evaluations],
        mode="lines+markers" if best or len(evaluations) < 4 else "lines",
        name=targets_of(result),
        legendgroup=targets_of(result),
        line={
            "color": color_of(index),
            "width": 4 if best else 1.5,
            "dash": "solid" if result.has_value else "dot",
        },
        opacity=1 if best else 0.75,
        text=[f"{hover(result)}<br>{unit} {n * scale}: {nats(result.curve[n])}" for n in evaluations],
        hoverinfo="text",
    )


def memory_by_rank(results: Sequence[TrialResult]) -> Panel:
    """Peak memory against rank by target set."""
    key, title = "memory-by-rank", "Peak memory against rank"
    peaks = [
        (result, peak) for result, _ in finished(results) if (peak := measured(result, "peak_memory_bytes")) is not None
    ]
    if not peaks:
        return Panel(key=key, title=title, words="No peak memory was measured.")
    unit, size = ("GiB", 2**30) if max(peak for _, peak in peaks) >= 2**30 else ("MiB", 2**20)
    points = [(result, float(result.config.lora.r), peak / size) for result, peak in peaks]
    figure = blank_figure("rank r (log2 scale)", f"peak memory ({unit})")
    _scatter(figure, points, side_by_side=True)
    figure.update_xaxes(log2_axis([rank for _, rank, _ in points]))
    words = "Each trial's peak while it trained. The axis does not begin at zero."
    return Panel(key=key, title=title, words=words, figure=figure)


def forgetting_by_gain(results: Sequence[TrialResult], base_loss: float, base_forgetting: float | None) -> Panel:
    """What general text lost against what the task won, in nats per token."""
    key, title = "forgetting-by-gain", "What it forgets for what it learns"
    points = [
        (result, base_loss - value, forgotten)
        for result, value in finished(results)
        if (forgotten := measured(result, "forgetting")) is not None
    ]
    if not points:
        return Panel(key=key, title=title, words="Forgetting was not measured.")
    figure = blank_figure("gain on held-out text (nats per token)", "forgetting (nats per token)")
    _scatter(figure, points)
    figure.add_hline(y=0, line={"color": VERMILION, "width": 1})
    base = "" if base_forgetting is None else f" (the bare base: {nats(base_forgetting)} nats per token)"
    words = f"Up is bad, right is good. Forgetting is the loss on general text after training minus before{base}."
    return Panel(key=key, title=title, words=words, figure=figure)
