"""Whether loss would have chosen the same: rank correlation, and the two choices in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from analysis.simulated import trial
from scipy.stats import spearmanr

from lora_lab.analysis.agreement import agreement
from lora_lab.study.measures import EXACT_MATCH, PERPLEXITY

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult


def trials(losses: Sequence[float], scores: Sequence[float], measure: Measure = EXACT_MATCH) -> list[TrialResult]:
    return [
        trial(n, loss, r=n + 1, metrics={measure.name: score})
        for n, (loss, score) in enumerate(zip(losses, scores, strict=True))
    ]


def test_a_lower_loss_with_a_higher_score_is_agreement() -> None:
    rng = np.random.default_rng(0)
    losses, scores = 4 + rng.random(12), rng.random(12)
    found = agreement(trials(losses, scores), EXACT_MATCH)
    assert found is not None
    assert found.correlation == pytest.approx(spearmanr(losses, -scores).statistic)
    assert found.interval is not None
    assert found.interval[0] < found.correlation < found.interval[1]
    assert found.by_loss.number == losses.argmin()
    assert found.by_metric.number == scores.argmax()
    assert found.given_away == pytest.approx(scores.max() - scores[losses.argmin()])
    assert f"trial {losses.argmin()} (exact match" in found.sentence


def test_of_a_measure_that_is_minimized_too() -> None:
    found = agreement(trials([4.0, 4.1, 4.2, 4.3, 4.4], [55, 60, 67, 74, 81], PERPLEXITY), PERPLEXITY)
    assert found is not None
    assert (found.correlation, found.interval) == (1.0, None)
    assert found.sentence.endswith("The loss would have chosen no worse: trial 0 has the best perplexity, too.")


def test_seeds_are_averaged_and_retrainings_of_finalists_left_out() -> None:
    rows = [
        trial(10 * n + seed, 4.0 + n / 10 + seed, r=n + 1, seed=seed, metrics={"exact_match": 0.1 * n + 0.2 * seed})
        for n in range(5)
        for seed in range(2)
    ]
    again = trial(99, 1.0, r=1, replicate=1, confirms=0, metrics={"exact_match": 1.0})
    found = agreement([*rows, again], EXACT_MATCH)
    assert found is not None
    assert [(one.eval_loss, one.value) for one in found.points[:2]] == [
        (pytest.approx(4.5), pytest.approx(0.1)),
        (pytest.approx(4.6), pytest.approx(0.2)),
    ]
    assert found.correlation == pytest.approx(-1.0)


def test_few_configurations_say_nothing_and_equal_scores_no_correlation() -> None:
    assert agreement(trials([4.0, 4.1, 4.2, 4.3], [0.1, 0.2, 0.3, 0.4]), EXACT_MATCH) is None
    found = agreement(trials([4.0, 4.1, 4.2, 4.3, 4.4], [0.5] * 5), EXACT_MATCH)
    assert found is not None
    assert found.correlation is None
    assert "is unknown" in found.sentence
    assert "no worse" in found.sentence
