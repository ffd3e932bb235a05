"""Which trials may still be chosen, and which are trained again with fresh seeds."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TYPE_CHECKING

from lora_lab.analysis.selection import finished, search_trials
from lora_lab.study.measures import TRAINABLE_PARAMS, price

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig


def ranking(results: Sequence[TrialResult]) -> list[tuple[float, TrialResult]]:
    """The trials of the search that have a loss, best first."""
    return sorted(((loss, one) for one, loss in finished(results)), key=lambda pair: (pair[0], pair[1].number))


def finalists(
    results: Sequence[TrialResult],
    identity: Callable[[TrialConfig], str],
    *,
    top: int,
    base_loss: float,
    margin: float,
    cost: str = TRAINABLE_PARAMS.name,
) -> list[TrialResult]:
    """The configurations to train again: in turn the next best, and the next cheapest that may tie with the best.

    The cheap ones are what the verdict is about: a tie has to be shown on fresh seeds for both.

    Args:
        results: All trials of the study.
        identity: Equal for trials that are replicates of each other; each configuration is chosen once.
        top: How many to choose.
        base_loss: Of the bare base, in nats per token.
        margin: Share of the best trial's gain over the base that counts as a tie.
        cost: What makes a configuration cheap.
    """
    by_identity: dict[str, tuple[float, TrialResult]] = {}
    for loss, result in ranking(results):
        by_identity.setdefault(identity(result.config), (loss, result))
    ranked = list(by_identity.values())
    if not ranked:
        return []
    best = ranked[0][0]
    bound = best + margin * max(0.0, base_loss - best)
    by_loss = [result for _, result in ranked]
    near = (result for loss, result in ranked if loss <= bound)
    cheap = sorted(near, key=lambda result: price(result.metrics, cost, result.number))
    turns = chain.from_iterable(zip_longest(by_loss, cheap))
    chosen = dict.fromkeys(result.number for result in turns if result is not None)
    numbered = {result.number: result for result in by_loss}
    return [numbered[number] for number in chosen][:top]


def first_fresh_seed(results: Sequence[TrialResult]) -> int:
    """Above every seed that the search has used: a retraining with one of those would be no new evidence."""
    return 1 + max((result.config.training.seed for result in search_trials(results)), default=0)
