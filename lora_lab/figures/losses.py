"""Loss, memory and forgetting against rank, parameters and time: one function per figure of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.comparison import difference
from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.selection import finished, measured, search_trials
from lora_lab.analysis.wording import nats, number_text, plural
from lora_lab.figures.style import (
    Panel,
    blank_figure,
    color_of,
    draw_reference,
    frame_words,
    hover,
    log2_axis,
    loss_frame,
    plot_text,
    set_height,
    symbol_of,
    target_names,
    targets_of,
    whole_epochs,
)
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import plotly.graph_objects as go

    from lora_lab.analysis.findings import Findings
    from lora_lab.analysis.noise import Noise
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.figures.style import Reference
    from lora_lab.study.results import TrialResult

    Point = tuple[TrialResult, float, float]

LOSS_TITLE = "eval_loss (nats per token)"
NONE_FINISHED = "No trial finished, so there is nothing to draw."
NOT_TOLD_APART = " \u2248"
MOST_RATIOS = 12
"""A heat map with more rows than this is unreadable."""


def reference(findings: Findings) -> Reference | None:
    """What losses are drawn against; None where the verdict is about another measure."""
    if findings.measure is not EVAL_LOSS:
        return None
    best = findings.best.value if findings.best else findings.base_value
    return findings.base_value, best, findings.margin


def _shifts(names: Sequence[str]) -> dict[str, float]:
    """Factors that put target sets side by side within a rank, so that no point hides another."""
    return {name: 2 ** (0.14 * (index - (len(names) - 1) / 2)) for index, name in enumerate(names)}


def scatter_by_targets(figure: go.Figure, points: Sequence[Point], *, side_by_side: bool = False) -> None:
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
    scatter_by_targets(figure, [(r, float(r.config.lora.r), v) for r, v in [*points, *again]], side_by_side=True)
    drawn = reference(findings)
    base_loss = drawn[0] if drawn else None
    frame = loss_frame([value for _, value in points], base_loss)
    draw_reference(figure, frame, drawn)
    figure.update_xaxes(log2_axis(ranks))
    words = (
        "Each point is a trial with its own alpha, learning rate and length; lines join each rank's best. "
        f"Hollow: retrainings with fresh seeds.{' The green band holds what ties with the best.' if drawn else ''}"
    )
    return Panel(key=key, title=title, words=words + frame_words(frame, base_loss), figure=figure)


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
    """Best eval_loss of every pair of rank and alpha / r, means over replicates where there are any.

    Pairs that no finished trial has stay blank; pairs that the noise floor does not tell from the best are marked.
    """
    key, title = "rank-and-ratio", "Rank and alpha together"
    best: dict[tuple[float, int], ReplicateGroup] = {}
    groups = replicate_groups(results)
    for group in groups:
        cell = (round(group.config.lora.alpha / group.config.lora.r, 6), group.config.lora.r)
        best[cell] = min(best.get(cell, group), group, key=lambda one: one.mean)
    ratios, ranks = sorted({ratio for ratio, _ in best}), sorted({rank for _, rank in best})
    if not best:
        return Panel(key=key, title=title, words=NONE_FINISHED)
    if len(best) == 1 or len(ratios) > MOST_RATIOS:
        tried = f"{plural(len(ranks), 'rank')} and {plural(len(ratios), 'value')} of alpha / r"
        return Panel(key=key, title=title, words=f"Finished trials have {tried}: not drawn.")
    rows = [[best.get((ratio, rank)) for rank in ranks] for ratio in ratios]
    lowest, noise = min(best.values(), key=lambda group: group.mean), noise_floor(groups)
    figure = blank_figure("rank r", "alpha / r")
    figure.add_heatmap(
        x=[str(rank) for rank in ranks],
        y=[number_text(ratio) for ratio in ratios],
        z=[[group.mean if group else None for group in row] for row in rows],
        text=[[_pair_text(group, lowest, noise) for group in row] for row in rows],
        hovertext=[[_pair_hover(group) for group in row] for row in rows],
        hoverinfo="text",
        texttemplate="%{text}",
        colorscale="Cividis",
        reversescale=True,
        xgap=3,
        ygap=3,
        colorbar={"title": {"text": "nats"}, "thickness": 12, "outlinewidth": 0},
    )
    set_height(figure, 130 + 62 * len(ratios))
    figure.update_layout(xaxis_type="category", yaxis_type="category")
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(showgrid=False)
    words = (
        "The best eval_loss (nats per token) of each pair, at its best other settings; blank where no trial was "
        f"trained to the end. {_floor_words(noise)}"
    )
    return Panel(key=key, title=title, words=words, figure=figure)


def _floor_words(noise: Noise | None) -> str:
    if noise is None:
        return "No noise floor was measured, so which pairs differ for real is not known."
    return (
        f"Marked with{NOT_TOLD_APART}: not shown to be worse than the best pair, whose 95% interval over seeds "
        "reaches it."
    )


def _pair_text(group: ReplicateGroup | None, lowest: ReplicateGroup, noise: Noise | None) -> str:
    if group is None:
        return ""
    within = noise is not None and (group is lowest or difference(group, lowest, noise).interval()[0] <= 0)
    return f"{group.mean:.3f}{NOT_TOLD_APART if within else ''}"


def _pair_hover(group: ReplicateGroup | None) -> str:
    if group is None:
        return "not tried to the end"
    runs = plural(len(group.values), "run")
    return f"trial {group.number}: {nats(group.mean)} nats per token ({runs})<br>{plot_text(group.label)}"


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
    if unit == "epoch":
        whole_epochs(figure, [max(result.curve) for result in trials])
    drawn = reference(findings)
    base_loss = drawn[0] if drawn else None
    frame = loss_frame([value for result in trials for value in result.curve.values()], base_loss)
    draw_reference(figure, frame, drawn)
    words = "Solid: reached its end. Dotted: pruned or stopped. Thick: the best trial."
    return Panel(key=key, title=title, words=words + frame_words(frame, base_loss), figure=figure)


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
