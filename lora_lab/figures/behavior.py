"""What trials do, beside their loss: metrics of the finalists, metric against loss, answers side by side, tasks."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from lora_lab.analysis.wording import measure_interval, measure_text, nats, plural, value_name
from lora_lab.figures.cells import Cell, Table, interval_cell, measure_cell, number_cell, text_cell
from lora_lab.figures.style import BLUE, VERMILION, Panel, blank_figure, plot_text
from lora_lab.study.measures import EVAL_LOSS
from lora_lab.study.task_scores import BASE, column_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.analysis.agreement import Agreement
    from lora_lab.analysis.findings import Findings
    from lora_lab.figures.evidence import Answers, Evidence
    from lora_lab.study.task_scores import TaskScore, TaskScores

NOTHING = "(nothing)"
"""Of an answer that ends at once."""
TAIL = 240
"""Characters of a prompt that are shown: its end, which is what is answered."""


def behavior_panels(evidence: Evidence) -> list[Panel]:
    """The panels of all that was measured; none where nothing but losses was."""
    panels = [_values(evidence)] if evidence.values else []
    panels += [agreement_panel(one) for one in evidence.agreements]
    if evidence.answers is not None:
        panels.append(answers_panel(evidence.answers, evidence.findings))
    if evidence.task_scores:
        panels.append(tasks_panel(evidence.task_scores, evidence.findings))
    return panels


def _values(evidence: Evidence) -> Panel:
    rows: list[list[Cell]] = []
    for finalist in evidence.values:
        name = _title(finalist.standing.number, evidence.findings)
        for told in finalist.values:
            measure = told.measure
            rows.append(
                [
                    text_cell(name),
                    text_cell(finalist.standing.label, "reason"),
                    text_cell(value_name(measure)),
                    measure_cell(measure, told.value),
                    interval_cell(told.interval, partial(measure_interval, measure)),
                    text_cell(told.evidence or "", "wrap"),
                    number_cell(told.runs),
                    measure_cell(measure, evidence.base_values.get(measure.name)),
                ]
            )
    words = (
        "Means over the trainings that the verdict rests on. The 95% interval covers what its column says: other "
        "seeds, other examples of this kind, or both. Intervals of one metric overlap more easily than differences do: "
        "whether one configuration is better than another, the verdict's paired test says."
    )
    headers = ["trial", "configuration", "metric", "value", "95%", "covers", "runs", "bare base"]
    return Panel(key="metrics", title="Metrics of the finalists", words=words, table=Table(headers, rows))


def agreement_panel(agreement: Agreement) -> Panel:
    """A metric against the loss: one point for each configuration."""
    measure = agreement.measure
    figure = blank_figure(f"eval_loss ({EVAL_LOSS.unit})", measure.label)
    chosen = {agreement.by_loss.number: "chosen by loss", agreement.by_metric.number: f"chosen by {measure.label}"}
    for color, points in (
        (BLUE, [one for one in agreement.points if one.number not in chosen]),
        (VERMILION, [one for one in agreement.points if one.number in chosen]),
    ):
        figure.add_scatter(
            x=[one.eval_loss for one in points],
            y=[one.value for one in points],
            mode="markers",
            marker={"color": color, "size": 9},
            name="configurations" if color == BLUE else "what loss or metric chooses",
            text=[
                f"trial {one.number}: {plot_text(one.label)}<br>{nats(one.eval_loss)} nats, "
                f"{measure_text(measure, one.value)}"
                for one in points
            ],
            hoverinfo="text",
        )
    rows = [
        [
            number_cell(one.number),
            text_cell(one.label, "reason"),
            measure_cell(EVAL_LOSS, one.eval_loss),
            measure_cell(measure, one.value),
            text_cell(chosen.get(one.number, "")),
        ]
        for one in sorted(agreement.points, key=lambda one: (measure.as_loss(one.value), one.eval_loss))
    ]
    return Panel(
        key=f"loss-and-{measure.name.replace('_', '-')}",
        title=f"Would loss have chosen the same? {measure.label.capitalize()} against loss",
        words=agreement.sentence,
        figure=figure,
        table=Table(["trial", "configuration", "loss", measure.label, "choice"], rows),
    )


def answers_panel(answers: Answers, findings: Findings) -> Panel:
    """Prompts with the answers of the base and of the finalists beside each other."""
    headers = ["prompt", "reference", *(["bare base"] if answers.has_base else [])]
    headers += [_title(number, findings) for number in answers.labels]
    rows = [
        [
            text_cell(_end_of(row.prompt), "reason"),
            text_cell(row.reference, "reason"),
            *([_said_cell(row.base or "")] if answers.has_base else []),
            *(_said_cell(row.answers[number]) for number in answers.labels),
        ]
        for row in answers.rows
    ]
    words = (
        f"{len(answers.rows)} of {plural(answers.total, 'held-out prompt')}, those first on which the answers differ, "
        f"as they do on {answers.differing}. "
        + "; ".join(f"trial {number}: {label}" for number, label in answers.labels.items())
        + ". Long texts are cut; the files predictions-*.jsonl in the trials' folders have all of them."
    )
    return Panel(key="answers", title="Answers side by side", words=words, table=Table(headers, rows))


def tasks_panel(tasks: Sequence[TaskScores], findings: Findings) -> Panel:
    """What lm-evaluation-harness measured: a row for each task and metric, a column for each trial."""
    columns = sorted({name for task in tasks for name in task.columns}, key=column_order)
    headers = ["task", "metric", *(_column_title(name, findings) for name in columns)]
    rows = []
    for task in tasks:
        for metric in task.metrics:
            scores = [task.columns.get(name, {}).get(metric) for name in columns]
            name = metric if task.higher_is_better.get(metric, True) else f"{metric} (lower is better)"
            rows.append(
                [
                    text_cell(task.task),
                    text_cell(name),
                    *map(_score_cell, scores),
                ]
            )
    limited = sorted({task.task for task in tasks if task.settings.get("limit") is not None})
    words = (
        "Measured by python -m lora_lab.evaluate; ± is the harness's standard error over documents, of one training "
        "each: other seeds of a trial may move more."
        + (f" Of {', '.join(limited)} only a part of the documents was asked (--limit)." if limited else "")
    )
    return Panel(
        key="tasks", title="Tasks of lm-evaluation-harness", words=words, table=Table(headers, rows, fixed=True)
    )


def _said_cell(answer: str) -> Cell:
    return text_cell(answer if answer.strip() else NOTHING, "reason")


def _score_cell(score: TaskScore | None) -> Cell:
    return number_cell(None) if score is None else Cell(score.text, repr(score.value), "n")


def _column_title(name: str, findings: Findings) -> str:
    return _title(int(name), findings) if name.isdigit() else name.replace(BASE, "bare base", 1)


def _title(number: int, findings: Findings) -> str:
    """Such as `trial 3 (best)`."""
    roles = ", ".join(findings.roles(number))
    return f"trial {number}" + (f" ({roles})" if roles else "")


def _end_of(prompt: str) -> str:
    return prompt if len(prompt) <= TAIL else f"…{prompt[-TAIL:]}"
