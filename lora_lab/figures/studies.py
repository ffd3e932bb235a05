"""Several studies on one page: verdicts side by side, their chosen configurations, their Pareto fronts overlaid."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import TYPE_CHECKING

from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.verdict_words import sentences
from lora_lab.analysis.wording import measure_interval, value_and_unit, value_text
from lora_lab.figures.cells import Table, html_table, interval_cell, measure_cell, number_cell, text_cell
from lora_lab.figures.page import not_drawn, section, write_page
from lora_lab.figures.style import Panel, axis_of, blank_figure, color_of, decimal_axis, plot_text, symbol_of, vertical
from lora_lab.study.data_settings import DatasetRef
from lora_lab.study.measures import EVAL_LOSS, MEASURES, costs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import plotly.graph_objects as go

    from lora_lab.analysis.findings import Standing
    from lora_lab.analysis.replicates import ReplicateGroup
    from lora_lab.figures.cells import Cell
    from lora_lab.figures.evidence import Evidence

SAME_BASE_NATS = 1e-6
"""Bare bases that differ by less were the same base on the same text; the rest is rounding."""


def write_comparison(path: Path, studies: Sequence[Evidence]) -> None:
    """Write the page that compares studies; each has its own report beside it, at `<study_name>/report.html`.

    Raises:
        StorageError: the file cannot be written.
    """
    names = [study.spec.study_name for study in studies]
    panels = comparison_panels(studies)
    links = ", ".join(f'<a href="{escape(name)}/report.html">{escape(name)}</a>' for name in names)
    head = (
        f'<header><p class="dim">lora_lab comparison; reports: {links}</p>\n'
        f"<h1>{escape(' and '.join(names))}</h1></header>"
    )
    choices = (
        "<section class=breakout><h2>What each study chose</h2>\n<p class=dim>Losses in nats per token, scores in "
        "points. Intervals are by each study's noise floor, from its replicates; without any there is none.</p>\n"
        f"{html_table(choices_table(studies))}</section>"
    )
    drawn = [section(panel) for panel in panels if panel.figure is not None]
    body = "\n".join([head, _cautions(studies), _verdicts(studies), choices, *drawn, not_drawn(panels)])
    write_page(path, f"{', '.join(names)}: comparison", body)


def comparison_panels(studies: Sequence[Evidence]) -> list[Panel]:
    """The Pareto front of each study over each cost, in one figure per cost."""
    return [_fronts(studies, cost) for cost in costs()]


def same_base(studies: Sequence[Evidence]) -> bool:
    """Whether values mean the same: the same measure, and equal for the bare bases, so of the same base and text."""
    if len({study.findings.measure.name for study in studies}) > 1:
        return False
    losses = [study.findings.base_value for study in studies]
    return max(losses) - min(losses) < SAME_BASE_NATS


def differences(studies: Sequence[Evidence]) -> list[str]:
    """What besides the sweep differs between the studies, one sentence each."""
    facts: dict[str, list[str]] = {}
    for study in studies:
        spec = study.spec
        settings: Mapping[str, str] = {
            "model": spec.model.model_name_or_path,
            "quantization": spec.model.quantization,
            "training text": _data_text(spec.data.train),
            "evaluation text": _data_text(spec.data.eval),
            "max_length": str(spec.data.max_length),
        }
        for name, value in settings.items():
            facts.setdefault(name, []).append(value)
    names = [study.spec.study_name for study in studies]
    return [
        f"{name} differs: {'; '.join(f'{study} {value}' for study, value in zip(names, values, strict=True))}."
        for name, values in facts.items()
        if len(set(values)) > 1
    ]


def _data_text(data: float | DatasetRef | Sequence[DatasetRef]) -> str:
    if isinstance(data, float):
        return f"{100 * data:g}% of the training text"
    if isinstance(data, DatasetRef):
        words = [value_text(value) for value in data.model_dump(exclude_none=True, exclude={"weight"}).values()]
        return " ".join(words if data.weight is None else [f"{data.weight:g} x", *words])
    return " + ".join(map(_data_text, data))


def _cautions(studies: Sequence[Evidence]) -> str:
    said = differences(studies)
    if not same_base(studies):
        losses = "; ".join(f"{study.spec.study_name} {_base_text(study)}" for study in studies)
        said.insert(
            0,
            f"The bare bases score differently ({losses}), so the values themselves are not comparable: "
            "the figures show the gain over each study's own base.",
        )
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    words = f'<ul class="warn">{items}</ul>' if said else "<p>Same base, same text, same length.</p>"
    return f"<section><h2>Are they comparable?</h2>{words}</section>"


def _base_text(study: Evidence) -> str:
    measure, value = study.findings.measure, study.findings.base_value
    return (
        value_and_unit(measure, value) if measure is EVAL_LOSS else f"{measure.label} {value_and_unit(measure, value)}"
    )


def _verdicts(studies: Sequence[Evidence]) -> str:
    columns = "".join(
        f'<div class="card"><h3>{escape(study.spec.study_name)}</h3><p class="dim">{escape(study.spec.question)}</p>'
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences(study.findings))}</ul></div>"
        for study in studies
    )
    return f'<section class="long"><h2>Verdicts side by side</h2><div class="grid verdicts">{columns}</div></section>'


def choices_table(studies: Sequence[Evidence]) -> Table:
    """The best and the recommended configuration of each study, with intervals where there are replicates."""
    headers = [
        "study",
        "choice",
        "trial",
        "configuration",
        "value",
        "runs",
        "95% interval",
        "better than the base by",
        "of trials",
    ]
    headers += [MEASURES[name].header for name in costs()]
    rows = []
    for study in studies:
        chosen = {"best": study.findings.best, "recommended": study.findings.cheapest}
        rows += [_choice_row(study, label, standing) for label, standing in chosen.items() if standing is not None]
        if study.findings.best is None:
            blank = [number_cell(None)] * (len(headers) - 3)
            rows.append([text_cell(study.spec.study_name), text_cell("nothing finished"), text_cell(""), *blank])
    return Table(headers, rows, fixed=True)


def _choice_row(study: Evidence, label: str, standing: Standing) -> list[Cell]:
    measure = study.findings.measure
    intervals = {row.standing.number: row.value_interval for row in study.findings.rows}
    return [
        text_cell(study.spec.study_name),
        text_cell(label),
        number_cell(standing.number),
        text_cell(standing.label, "reason"),
        measure_cell(measure, standing.value),
        number_cell(standing.runs),
        interval_cell(intervals.get(standing.number), partial(measure_interval, measure)),
        measure_cell(measure, measure.gain_over(study.findings.base_value, standing.value)),
        number_cell(sum(study.findings.states.values())),
        *(measure_cell(MEASURES[name], standing.costs.get(name)) for name in costs()),
    ]


def _fronts(studies: Sequence[Evidence], cost: str) -> Panel:
    label, axis = MEASURES[cost].label, axis_of(MEASURES[cost])
    key, title = f"fronts-{cost.replace('_', '-')}", f"Pareto fronts against {label}"
    comparable, judged = same_base(studies), studies[0].findings.measure
    figure = blank_figure(axis.title, axis_of(judged).title if comparable else "gain over the own base")
    spent: list[float] = []
    for index, study in enumerate(studies):
        means = [(group, group.metric_mean(cost)) for group in replicate_groups(study.results, study.findings.measure)]
        groups = [(group, mean / axis.size) for group, mean in means if mean is not None]
        spent += [place for _, place in groups]
        members = [member for front in study.fronts if front.axes[1] == cost for member in front.members]
        on_front = {member.number for member in members if member.on_front}
        zero = None if comparable else study.findings.base_value
        name = plot_text(study.spec.study_name)
        _points(figure, [pair for pair in groups if pair[0].number not in on_front], zero, name, index)
        front = sorted((pair for pair in groups if pair[0].number in on_front), key=lambda pair: pair[1])
        _points(figure, front, zero, name, index, joined=True)
    if not spent:
        return Panel(key=key, title=title, words=f"No finished trial has a {label}.")
    if axis.log:
        figure.update_xaxes(decimal_axis(spent))
    words = (
        f"{vertical(judged) if comparable else 'Up'} and left is better. A line joins the trials that no other "
        "one of the same study beats; the others are faint."
    )
    return Panel(key=key, title=title, words=words, figure=figure)


def _points(
    figure: go.Figure,
    groups: Sequence[tuple[ReplicateGroup, float]],
    zero: float | None,
    name: str,
    index: int,
    *,
    joined: bool = False,
) -> None:
    """Configurations of one study by cost and loss, or by the gain over `zero`; those on its front are joined."""
    figure.add_scatter(
        x=[spent for _, spent in groups],
        y=[group.value if zero is None else group.measure.gain_over(zero, group.value) for group, _ in groups],
        mode="lines+markers" if joined else "markers",
        line={"color": color_of(index), "shape": "hv", "width": 2},
        marker={"color": color_of(index), "symbol": symbol_of(index), "size": 9 if joined else 7},
        opacity=1.0 if joined else 0.35,
        name=name,
        legendgroup=name,
        showlegend=joined,
        text=[
            f"{name}, trial {group.number}: {plot_text(group.label)}<br>{value_and_unit(group.measure, group.value)}"
            for group, _ in groups
        ],
        hoverinfo="text",
    )
