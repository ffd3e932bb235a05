"""How many seeds and evaluation examples would settle a comparison that is open."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.analysis.comparison import LEVEL

if TYPE_CHECKING:
    from lora_lab.analysis.paired import Difference

POWER = 0.8
"""How likely the numbers that are said show a true tie to be one."""
MOST_SEEDS = 100
"""Nobody trains more replicates than this to settle a tie."""
MOST_EXAMPLES = 20
"""Times the evaluation set that is there; more are seldom to be had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """Two ways to show that a configuration is within the margin, if its distance is as it was measured."""

    seeds: int | None
    """Of each configuration, on the evaluation examples that are there; None: no number up to a hundred does."""
    examples: int | None
    """Evaluation examples, each measured by `examples_seeds` trainings; None: not counted as a sample, or too many."""
    examples_seeds: int
    """Seeds of each configuration that go with `examples`: those that are there, where these are enough."""

    present: int
    """Evaluation examples that are there; 0: not counted as a sample."""

    @property
    def found(self) -> bool:
        """Whether any of both ways is within reach."""
        return self.seeds is not None or self.examples is not None


def what_decides(apart: Difference, margin: float, *, runs: int, comparisons: int = 1) -> Needed:
    """The seeds, or the evaluation examples, that show a difference to be below the margin in four of five studies.

    From the usual formula for a one-sided test, (t + t) se <= margin - distance, at 5% over the number of comparisons
    (the first step of Holm's correction). The variance over seeds falls with the seeds, that over examples with the
    examples, and their interaction with both; so where examples count, there is a distance below which no number of
    seeds is enough.

    Args:
        apart: The difference, with the parts of its variance.
        margin: What it is to be shown to lie below.
        runs: Trainings of each configuration behind it.
        comparisons: How many share the correction and are not settled yet.

    """
    room = margin - max(0.0, apart.mean)

    def enough(seeds: int, times_examples: int) -> bool:
        freedom = apart.degrees_of_freedom * max(1.0, (seeds - 1) / max(1, runs - 1))
        return 0 < room >= _quantiles(freedom, comparisons) * apart.se_with(seeds / runs, times_examples)

    more = range(runs + 1, MOST_SEEDS + 1)
    seeds = next((n for n in more if enough(n, 1)), None)
    fewer = range(runs, seeds or MOST_SEEDS + 1) if apart.examples else ()
    pairs = ((n, times) for n in fewer for times in range(2, MOST_EXAMPLES + 1) if enough(n, times))
    with_examples = next(pairs, None)
    return Needed(
        seeds=seeds,
        examples=with_examples[1] * apart.examples if with_examples else None,
        examples_seeds=with_examples[0] if with_examples else runs,
        present=apart.examples,
    )


def _quantiles(freedom: float, comparisons: int) -> float:
    """The standard errors that must lie between a distance and the margin."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # half a second: only where needed

    if math.isinf(freedom):
        freedom = 1e9
    return float(stdtrit(freedom, 1 - LEVEL / comparisons)) + float(stdtrit(freedom, POWER))
