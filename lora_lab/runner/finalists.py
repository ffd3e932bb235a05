"""Which trials may still be chosen, and which are trained again with fresh seeds."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from lora_lab.analysis.comparison import within
from lora_lab.analysis.selection import ranked, search_trials
from lora_lab.study.measures import EVAL_LOSS, price

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.sweep import Verdict


def finalists(
    results: Sequence[TrialResult],
    identity: Callable[[TrialConfig], str],
    *,
    top: int,
    base_value: float,
    verdict: Verdict,
    measure: Measure = EVAL_LOSS,
) -> list[TrialResult]:
    """The configurations to train again: in turn the next best, and the next cheapest that may tie with the best.

    The cheap ones are what the verdict is about: a tie has to be shown on fresh seeds for both.

    Args:
        results: All trials of the study.
        identity: Equal for trials that are replicates of each other; each configuration is chosen once.
        top: How many to choose.
        base_value: Of the bare base.
        verdict: What counts as a tie, and what is cheap.
        measure: What the verdict is about.
    """
    by_identity: dict[str, tuple[TrialResult, float]] = {}
    for result, value in ranked(results, measure):
        by_identity.setdefault(identity(result.config), (result, value))
    distinct = list(by_identity.values())
    near = _near(distinct, base_value, verdict, measure)
    cheap = sorted(near, key=lambda result: price(result.metrics, verdict.cost, result.number))
    by_value = [result for result, _ in distinct]
    turns = chain.from_iterable(zip_longest(by_value, cheap))
    chosen = dict.fromkeys(result.number for result in turns if result is not None)
    numbered = {result.number: result for result in by_value}
    return [numbered[number] for number in chosen][:top]


def _near(
    best_first: Sequence[tuple[TrialResult, float]], base_value: float, verdict: Verdict, measure: Measure
) -> list[TrialResult]:
    """The trials whose value lies within the margin of the first one's."""
    if not best_first:
        return []
    best = best_first[0][1]
    width = verdict.width(measure.gain_over(base_value, best))
    return [result for result, value in best_first if within(measure.gain_over(value, best), width)]


def first_fresh_seed(results: Sequence[TrialResult]) -> int:
    """A seed above every seed of the search: a retraining with a seed that was used before would be no new evidence."""
    return 1 + max((result.config.training.seed for result in search_trials(results)), default=0)
