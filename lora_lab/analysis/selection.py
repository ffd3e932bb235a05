"""Which rows of the trial table a statistic may use."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult


def search_trials(results: Iterable[TrialResult]) -> list[TrialResult]:
    """The trials of the search, without the retrainings of finalists."""
    return [result for result in results if result.replicate == 0]


def measured(result: TrialResult, metric: str = EVAL_LOSS.name) -> float | None:
    """Final value of a metric; None for a trial that did not reach its end or whose value is not finite."""
    value = result.metrics.get(metric)
    return value if result.has_value and value is not None and math.isfinite(value) else None


def finished(results: Iterable[TrialResult], metric: str = EVAL_LOSS.name) -> list[tuple[TrialResult, float]]:
    """Search trials that reached their end, each with its value, in the order given."""
    pairs = ((result, measured(result, metric)) for result in search_trials(results))
    return [(result, value) for result, value in pairs if value is not None]


def ranked(results: Iterable[TrialResult], measure: Measure = EVAL_LOSS) -> list[tuple[TrialResult, float]]:
    """Search trials that reached their end, each with its value, the best first."""
    return sorted(finished(results, measure.name), key=lambda pair: (measure.as_loss(pair[1]), pair[0].number))


def retrainings(results: Iterable[TrialResult], number: int) -> list[TrialResult]:
    """The retrainings of trial `number` with fresh seeds, whatever became of them."""
    return [result for result in results if result.replicate > 0 and result.confirms == number]
