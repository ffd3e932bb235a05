"""Which trials of a study with several metrics go on past a rung: the better half by non-dominated sorting.

Optuna's `report` and `should_prune` refuse such studies, while telling a trial pruned works there. Trials are
compared by the objectives that are known at the rung: eval_loss there, trained parameters and memory exactly, and
training time as it will be. Forgetting is measured at the end only, so it has no say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lora_lab.search.pruners import is_rung
from lora_lab.search.records import RUNGS, is_replicate

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from optuna.trial import FrozenTrial

    from lora_lab.study.sweep import Metric, SweepSettings


def is_in_worse_half(sweep: SweepSettings, trial: FrozenTrial, rung: int, trials: Iterable[FrozenTrial]) -> bool:
    """Whether a trial ends at the rung that it stands on, given all trials of its study."""
    if sweep.pruner == "none" or not is_rung(rung):
        return False
    reported = {
        one.number: figures
        for one in trials
        if not is_replicate(one) and (figures := one.user_attrs.get(RUNGS, {}).get(str(rung))) is not None
    }
    return trial.number in worse_half(reported, sweep.metric)


def worse_half(reported: Mapping[int, Mapping[str, float]], metrics: Sequence[Metric]) -> set[int]:
    """The trials that end at a rung, by number.

    Fronts go on whole, best first, while they fit into the better half; of the front that does not fit the most
    isolated trials do (NSGA-II's crowding distance, DOI 10.1109/4235.996017). A trial that none dominates always goes
    on, and one whose loss or score is no possible value never does. Nobody ends where none of these is an objective
    that is known at the rung: costs alone say nothing about how well a trial learns.

    Args:
        reported: What each trial that came to the rung reported there.
        metrics: The objectives of the study.
    """
    known = [metric for metric in metrics if all(metric.name in figures for figures in reported.values())]
    learned = [metric.measure for metric in known if metric.measure.kind in ("loss", "score")]
    if not learned:
        return set()
    lost = {number for number, figures in reported.items() if not all(one.can_be(figures[one.name]) for one in learned)}
    numbers = sorted(reported.keys() - lost)
    losses = np.array(
        [[metric.measure.as_loss(reported[number][metric.name]) for metric in known] for number in numbers]
    ).reshape(-1, len(known))
    room = max(1, len(reported) // 2)
    kept: list[int] = []
    for rank, front in enumerate(_fronts(losses)):
        if rank and len(kept) + len(front) > room:
            kept += _most_isolated(front, losses)[: max(0, room - len(kept))]
            break
        kept += front
    return lost | (set(numbers) - {numbers[index] for index in kept})


def _fronts(losses: np.ndarray) -> list[list[int]]:
    """Row indices of [n, m] smaller-is-better values, front after front; equal rows do not dominate each other."""
    no_worse = np.all(losses[:, None] <= losses[None], axis=2)
    dominates = no_worse & ~no_worse.T
    left, fronts = np.arange(len(losses)), []
    while len(left):
        dominated = dominates[np.ix_(left, left)].any(axis=0)
        fronts.append(left[~dominated].tolist())
        left = left[dominated]
    return fronts


def _most_isolated(front: list[int], values: np.ndarray) -> list[int]:
    """The front's members by the distance between their neighbors, over all objectives, the largest first."""
    distance = np.zeros(len(front))
    for column in values[front].T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]]
        if spread:
            gaps = (column[order[2:]] - column[order[:-2]]) / spread
            distance[order[1:-1]] += gaps
            distance[order[[0, -1]]] = np.inf
    return [front[place] for place in np.argsort(-distance, kind="stable")]
