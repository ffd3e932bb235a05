"""The report's tables of trials, of parameter values and of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.analysis.selection import measured
from lora_lab.analysis.values import by_value, rank_table
from lora_lab.analysis.wording import (
    count_text,
    nats,
    rate_text,
    value_text,
)
from lora_lab.figures.cells import Cell, Table, measure_cell, number_cell, text_cell
from lora_lab.study.measures import MEASURES
from lora_lab.study.trial_settings import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult
    from lora_lab.study.sweep import Value


def value_table(results: Sequence[TrialResult], name: str) -> Table:
    """Tried, finished, best and median loss per value of one parameter."""
    rows = [
        [
            text_cell(row.label),
            number_cell(row.tried),
            number_cell(row.finished),
            number_cell(row.best, nats),
            number_cell(row.median, nats),
            number_cell(row.best_trial),
        ]
        for row in by_value(results, name)
    ]
    return Table(["value", "tried", "finished", "best", "median", "trial"], rows)


def ranks_table(results: Sequence[TrialResult]) -> Table:
    """Best and median loss per target set and rank."""
    rows = [
        [
            text_cell(row.targets),
            number_cell(row.r),
            number_cell(row.finished),
            number_cell(row.best, nats),
            number_cell(row.median, nats),
            number_cell(row.trainable_params, count_text),
            number_cell(row.best_trial),
        ]
        for row in rank_table(results)
    ]
    return Table(["targets", "r", "finished", "best", "median", "params", "trial"], rows)


TRIAL_COLUMNS: Mapping[str, Callable[[TrialResult], Cell]] = {
    "trial": lambda trial: number_cell(trial.number),
    "state": lambda trial: text_cell(trial.state.replace("_", " ")),
    "eval_loss, nats": lambda trial: number_cell(measured(trial), nats),
}
SETTING_COLUMNS: Mapping[str, str] = {
    "r": "r",
    "lora_alpha": "alpha",
    "scaling": "scaling",
    "target_modules": "targets",
    "layers": "layers",
    "num_train_epochs": "epochs",
    "learning_rate": "lr",
}
"""The settings that every study's table shows, searched or not, and how their columns are headed."""
LAST_COLUMNS: Mapping[str, Callable[[TrialResult], Cell]] = {
    "engine": lambda trial: text_cell(trial.engine.name),
    "source": lambda trial: number_cell(trial.source),
    "remark": lambda trial: text_cell(_remark(trial), "reason"),
}
"""What became of it; between these stand its seed and what was measured of it."""
SHOWN_OTHERWISE = ("alpha_ratio", "seed")
"""Searched parameters without a column: alpha and r tell the ratio, and the seed stands with the figures."""


def _figure_cell(trial: TrialResult, measure: Measure) -> Cell:
    known = trial.metrics.get(measure.name) if measure.kind in ("cost", "detail") else measured(trial, measure.name)
    return measure_cell(measure, known)


def _remark(result: TrialResult) -> str:
    about = []
    if result.confirms is not None:
        about.append(f"retraining of trial {result.confirms} with seed {result.config.training.seed}")
    if result.source is not None:
        about.append(f"read off trial {result.source}")
    if result.reason:
        about.append(result.reason)
    if result.curve and not result.has_value:
        last = max(result.curve)
        about.append(f"{nats(result.curve[last])} at evaluation {last}")
    return "; ".join(about)


def _setting_cell(name: str, value: Value | None) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number_cell(value, rate_text) if name == "learning_rate" else number_cell(value)
    return text_cell("" if value is None else value_text(value))


def trials_table(results: Sequence[TrialResult], choice: int | None) -> Table:
    """Every trial in every state; `choice` is the number of the one that the verdict recommends.

    Columns that no trial fills are left out.
    """
    searched = dict.fromkeys(name for trial in results for name in trial.params if name not in SHOWN_OTHERWISE)
    headers = {**SETTING_COLUMNS, **{name: name for name in searched if name not in SETTING_COLUMNS}}
    settings = [settings_of(trial.config) for trial in results]
    columns = {
        **{header: [show(trial) for trial in results] for header, show in TRIAL_COLUMNS.items()},
        **{header: [_setting_cell(name, one[name]) for one in settings] for name, header in headers.items()},
        "seed": [number_cell(trial.config.training.seed) for trial in results],
        **{one.header: [_figure_cell(trial, one) for trial in results] for one in MEASURES.values() if one.header},
        **{header: [show(trial) for trial in results] for header, show in LAST_COLUMNS.items()},
    }
    filled = {header: cells for header, cells in columns.items() if any(cell.text for cell in cells)}
    marked = [index for index, trial in enumerate(results) if trial.number == choice]
    return Table(list(filled), list(zip(*filled.values(), strict=True)), marked, fixed=True)
