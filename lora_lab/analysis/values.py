"""Best and median loss per parameter value, and per rank and target set."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import finished, measured, search_trials
from lora_lab.analysis.wording import number_text, rate_text, targets_text, value_text
from lora_lab.study.measures import TRAINABLE_PARAMS
from lora_lab.study.trial_settings import value_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.results import TrialResult
    from lora_lab.study.sweep import Value

DISTINCT_NUMBERS = 8
"""Numbers beyond this many distinct ones are summarized by ranges."""
RANGES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSummary:
    """How the trials did that had one value, or a value from one range, of a parameter."""

    label: str
    tried: int
    finished: int
    best: float | None
    """Nats per token; None where no trial finished."""
    median: float | None
    best_trial: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSummary:
    """The finished trials of one rank on one target set."""

    targets: str
    r: int
    finished: int
    best: float
    median: float
    best_trial: int
    trainable_params: float | None
    """Of the best trial."""


def by_value(results: Sequence[TrialResult], name: str) -> list[ValueSummary]:
    """Tried, finished, best and median per value of a parameter, in the order of the values.

    More than eight distinct numbers are summarized by four ranges of about equally many trials.
    """
    trials = search_trials(results)
    label_of = _labels(name, [value_of(trial.config, name) for trial in trials])
    groups: dict[str, list[TrialResult]] = {}
    for trial in sorted(trials, key=lambda trial: _order(value_of(trial.config, name))):
        groups.setdefault(label_of(value_of(trial.config, name)), []).append(trial)
    return [_summary(label, group) for label, group in groups.items()]


def _order(value: Value) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, (int, float)) else (1, 0.0, value_text(value))


def _labels(name: str, values: Sequence[Value]) -> Callable[[Value], str]:
    """What a value is called in a table: itself, or the range that it lies in."""
    numbers = sorted(
        float(value) for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)
    )
    text = rate_text if name == "learning_rate" else number_text
    if len(numbers) < len(values) or len(set(numbers)) <= DISTINCT_NUMBERS:
        return lambda value: text(value) if isinstance(value, float) else value_text(value)
    size = math.ceil(len(numbers) / RANGES)
    lows = sorted({numbers[start] for start in range(0, len(numbers), size)})
    highs = [max(number for number in numbers if number < low) for low in lows[1:]] + [numbers[-1]]

    def label(value: Value) -> str:
        index = sum(float(value) >= low for low in lows) - 1  # type: ignore[arg-type]  # all are numbers here
        return f"{text(lows[index])} to {text(highs[index])}"

    return label


def _summary(label: str, trials: Sequence[TrialResult]) -> ValueSummary:
    values = finished(trials)
    best = min(values, key=lambda pair: pair[1], default=None)
    return ValueSummary(
        label=label,
        tried=len(trials),
        finished=len(values),
        best=best[1] if best else None,
        median=statistics.median(value for _, value in values) if values else None,
        best_trial=best[0].number if best else None,
    )


def rank_table(results: Sequence[TrialResult]) -> list[RankSummary]:
    """Best and median loss per target set and rank, over the finished search trials."""
    groups: dict[tuple[str, int], list[tuple[TrialResult, float]]] = {}
    for result, value in finished(results):
        lora = result.config.lora
        groups.setdefault((targets_text(lora), lora.r), []).append((result, value))
    rows = []
    for (targets, r), pairs in sorted(groups.items()):
        winner, best = min(pairs, key=lambda pair: pair[1])
        rows.append(
            RankSummary(
                targets=targets,
                r=r,
                finished=len(pairs),
                best=best,
                median=statistics.median(value for _, value in pairs),
                best_trial=winner.number,
                trainable_params=measured(winner, TRAINABLE_PARAMS.name),
            )
        )
    return rows
