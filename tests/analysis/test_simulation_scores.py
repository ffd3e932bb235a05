"""How often the verdict is right on answers that are right or wrong, over simulated studies of 0/1 scores.

A row has a difficulty, a configuration an ability and a taste for single rows, and a seed shifts the logit of a
training: the chance of a right answer is the logistic function of ability + taste + shift - difficulty.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from analysis.simulated import trial
from scipy.optimize import brentq
from scipy.special import expit

from lora_lab.analysis.comparison import LEVEL, difference
from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.paired import ExampleLosses
from lora_lab.analysis.replicates import replicate_groups
from lora_lab.analysis.verdict import decide
from lora_lab.study.measures import EXACT_MATCH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.analysis.findings import Findings
    from lora_lab.study.results import TrialResult

BASE = 0.02
DIFFICULTY, TASTE, SHIFT = 1.5, 0.5, 0.15
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(60)


def accuracy(ability: float) -> float:
    """Of all rows and all seeds that there could be."""
    spread = np.sqrt(DIFFICULTY**2 + TASTE**2 + SHIFT**2)
    return float(np.sum(WEIGHTS * expit(ability + spread * NODES)) / WEIGHTS.sum())


def ability(share: float) -> float:
    return float(brentq(lambda one: accuracy(one) - share, -12, 12))


@dataclass
class Study:
    """Configurations by rank, the dearest last, each trained with as many seeds and asked the same rows."""

    accuracies: Sequence[float]
    rows: int
    seeds: int = 3

    def __post_init__(self) -> None:
        self._abilities = np.array([ability(one) for one in self.accuracies])[:, None, None]
        self._cells = [
            trial(100 * index + seed, 4.0, r=4 * (index + 1), seed=seed)
            for index in range(len(self.accuracies))
            for seed in range(self.seeds)
        ]
        self._once = np.ones(self.rows, dtype=np.int64)

    def draw(self, rng: np.random.Generator) -> tuple[list[TrialResult], dict[int, ExampleLosses]]:
        count = len(self.accuracies)
        difficulty = rng.normal(0, DIFFICULTY, self.rows)
        taste = rng.normal(0, TASTE, (count, 1, self.rows))
        shift = rng.normal(0, SHIFT, (count, self.seeds, 1))
        chances = expit(self._abilities + taste + shift - difficulty)
        right = (rng.random(chances.shape) < chances).reshape(-1, self.rows)
        trials = [
            replace(cell, metrics={**cell.metrics, EXACT_MATCH.name: float(own.mean())})
            for cell, own in zip(self._cells, right, strict=True)
        ]
        losses = {
            cell.number: ExampleLosses(-own.astype(float), self._once)
            for cell, own in zip(self._cells, right, strict=True)
        }
        return trials, losses

    def verdict(self, rng: np.random.Generator, margin: float) -> Findings:
        trials, losses = self.draw(rng)
        return decide(trials, BASE, 0.01, EXACT_MATCH, absolute_margin=margin, losses=losses)

    def pairs(self, draws: int) -> tuple[float, float]:
        """Of the first configuration against the last, which is better by the margin.

        Returns:
            How often the first is claimed to be within that margin (5% by design), and how often the 95% interval of
            the difference has the true one in it.
        """
        rng = np.random.default_rng(0)
        margin = self.accuracies[-1] - self.accuracies[0]  # of losses, the scores' negatives
        claims, hits = [], []
        for _ in range(draws):
            trials, losses = self.draw(rng)
            groups = replicate_groups(trials, EXACT_MATCH)
            noise = noise_floor(groups)
            assert noise is not None
            apart = difference(groups[0], groups[-1], noise, losses)
            assert apart.evidence == "seeds and examples"
            low, high = apart.interval()
            claims.append(apart.p_not_below(margin) <= LEVEL)
            hits.append(low <= margin <= high)
        return float(np.mean(claims)), float(np.mean(hits))

    def verdicts(self, margin: float, draws: int) -> list[Findings]:
        rng = np.random.default_rng(0)
        found = []
        for _ in range(draws):
            trials, losses = self.draw(rng)
            found.append(decide(trials, BASE, 0.01, EXACT_MATCH, absolute_margin=margin, losses=losses))
        return found


def worse(margin: float, top: float, count: int, rows: int) -> Study:
    """All but the last are worse by the margin."""
    return Study([top - margin] * (count - 1) + [top], rows)


@pytest.mark.parametrize(("rows", "top", "margin"), [(100, 0.8, 0.05), (300, 0.05, 0.03), (300, 0.99, 0.02)])
def test_a_configuration_at_the_margin_is_claimed_in_a_twentieth_of_studies(
    rows: int, top: float, margin: float
) -> None:
    wrong, coverage = worse(margin, top, count=6, rows=rows).pairs(200)

    assert wrong <= 0.08
    assert coverage >= 0.92


@pytest.mark.slow
@pytest.mark.parametrize("rows", [100, 300, 1000])
@pytest.mark.parametrize(("top", "margin"), [(0.5, 0.05), (0.8, 0.05), (0.95, 0.05), (0.99, 0.02), (0.999, 0.01)])
def test_of_six_configurations_claims_and_intervals_are_as_good_as_they_say(
    rows: int, top: float, margin: float
) -> None:
    wrong, coverage = worse(margin, top, count=6, rows=rows).pairs(1500)

    assert wrong <= 0.065
    assert coverage >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("rows", [100, 300, 1000])
@pytest.mark.parametrize(("top", "margin"), [(0.03, 0.02), (0.05, 0.03)])
def test_so_they_are_where_hardly_an_answer_is_right(rows: int, top: float, margin: float) -> None:
    """The bound of the variance over seeds by its interaction with examples does it: 7% without."""
    wrong, coverage = worse(margin, top, count=6, rows=rows).pairs(1500)

    assert wrong <= 0.065
    assert coverage >= 0.93


@pytest.mark.slow
@pytest.mark.parametrize("rows", [100, 300, 1000])
@pytest.mark.parametrize(("top", "margin"), [(0.5, 0.05), (0.8, 0.05), (0.95, 0.05), (0.99, 0.02)])
def test_of_two_configurations_alone_claims_come_a_little_too_easily(rows: int, top: float, margin: float) -> None:
    """Three seeds of two configurations are four degrees of freedom in all: up to 8% instead of 5%, as with losses."""
    wrong, coverage = worse(margin, top, count=2, rows=rows).pairs(1500)

    assert wrong <= 0.1
    assert coverage >= 0.89


@pytest.mark.slow
def test_no_one_of_five_at_the_margin_is_recommended_in_more_than_a_twentieth_of_studies() -> None:
    for rows, top, margin in ((100, 0.8, 0.05), (300, 0.95, 0.05), (1000, 0.5, 0.05)):
        claims = [
            any(row.decision == "equivalent" for row in findings.rows if row.standing.config.lora.r != 24)
            for findings in worse(margin, top, count=6, rows=rows).verdicts(margin, 150)
        ]
        assert np.mean(claims) <= 0.08


@pytest.mark.slow
def test_of_equal_configurations_a_cheap_one_is_recommended_and_one_that_is_clearly_better_is_found() -> None:
    equal = Study([0.8] * 6, rows=1000).verdicts(0.05, 60)
    assert np.mean([f.cheapest is not None and f.cheapest.config.lora.r < 24 for f in equal]) >= 0.8
    better = Study([0.7] * 5 + [0.8], rows=1000).verdicts(0.02, 60)
    assert np.mean([f.cheapest is not None and f.cheapest.config.lora.r == 24 for f in better]) >= 0.98
