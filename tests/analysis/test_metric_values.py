"""The finalists by every metric, with intervals over what is known: seeds, examples, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from analysis.simulated import trial

from lora_lab.analysis.metric_values import finalist_values, finalists
from lora_lab.analysis.paired import ExampleLosses
from lora_lab.analysis.verdict import decide
from lora_lab.study.measures import EVAL_LOSS, EXACT_MATCH, MACRO_F1

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult

ROWS = 200
ONCE = np.ones(ROWS, dtype=np.int64)


def drawn(seeds: int) -> tuple[list[TrialResult], dict[int, ExampleLosses]]:
    rng, trials, losses = np.random.default_rng(0), [], {}
    for n, share in enumerate((0.3, 0.6, 0.8)):
        for seed in range(seeds):
            right = rng.random(ROWS) < share
            number = 10 * n + seed
            metrics = {"exact_match": float(right.mean()), "macro_f1": float(right.mean()) / 2}
            trials.append(trial(number, 4.0 - n / 10 + seed / 100, r=n + 1, seed=seed, metrics=metrics))
            losses[number] = ExampleLosses(-right.astype(float), ONCE)
    return trials, losses


def test_over_seeds_and_examples_or_over_seeds_alone() -> None:
    trials, losses = drawn(seeds=3)
    findings = decide(trials, 0.1, 0.01, EXACT_MATCH, absolute_margin=0.05, losses=losses)
    told = finalist_values(trials, findings, [EVAL_LOSS, EXACT_MATCH, MACRO_F1], {"exact_match": losses})

    assert findings.best is not None
    best = told[0]
    assert best.standing.number == findings.best.number
    loss, match, f1 = best.values
    assert [one.evidence for one in (loss, match, f1)] == ["noise floor", "seeds and examples", "noise floor"]
    assert match.value == pytest.approx(np.mean([one.metrics["exact_match"] for one in trials[-3:]]))
    assert match.runs == 3
    assert match.interval is not None
    assert f1.interval is not None
    low, high = match.interval
    binomial = np.sqrt(0.8 * 0.2 / ROWS)
    assert low < match.value < high <= 1
    assert 1.5 * binomial / np.sqrt(3) < (high - low) / 2 < 4 * binomial


def test_a_single_run_has_an_interval_over_examples_or_none() -> None:
    trials, losses = drawn(seeds=1)
    findings = decide(trials, 0.1, 0.01, EXACT_MATCH, losses=losses)
    [_, match, f1] = finalist_values(trials, findings, [EVAL_LOSS, EXACT_MATCH, MACRO_F1], {"exact_match": losses})[
        0
    ].values
    assert match.evidence == "examples"
    assert match.interval is not None
    assert (match.interval[1] - match.interval[0]) / 2 == pytest.approx(1.97 * np.sqrt(0.8 * 0.2 / ROWS), rel=0.1)
    assert (f1.evidence, f1.interval) == (None, None)


def test_the_best_and_the_recommended_come_first() -> None:
    trials, losses = drawn(seeds=3)
    findings = decide(trials, 0.1, 0.01, EXACT_MATCH, absolute_margin=0.5, losses=losses)
    assert findings.best is not None
    assert findings.cheapest is not None
    assert findings.cheapest.number != findings.best.number
    numbers = [one.number for one in finalists(findings)]
    assert numbers[:2] == [findings.best.number, findings.cheapest.number]
    assert len(set(numbers)) == len(numbers) == 3
