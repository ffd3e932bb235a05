from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from analysis.simulated import BASE_LOSS, results, trial

from lora_lab.analysis.paired import ExampleLosses
from lora_lab.analysis.verdict import decide
from lora_lab.analysis.verdict_words import sentences
from lora_lab.common.errors import InputError
from lora_lab.study.measures import FORGETTING, TRAIN_SECONDS, costs

if TYPE_CHECKING:
    from lora_lab.analysis.findings import Standing
    from lora_lab.study.results import TrialResult


def test_the_cheapest_configuration_that_ties_is_recommended() -> None:
    trials = [trial(0, 4.0, r=64), trial(1, 4.009, r=8), trial(2, 4.0095, r=4), trial(3, 4.02, r=2)]

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert findings.best is not None
    assert findings.best.number == 0
    assert findings.margin == pytest.approx(0.01)
    assert [standing.number for standing in findings.equivalent] == [2, 1, 0]
    assert findings.cheapest is findings.equivalent[0]
    words = " ".join(sentences(findings))
    assert "2 other trials come within 1% of that gain (0.0100 nats)" in words
    assert "4k trained parameters instead of 64k (16 times fewer)" in words


def test_equal_cost_falls_back_to_time_and_then_to_the_lower_number() -> None:
    slow, fast = trial(0, 4.0), trial(1, 4.001, learning_rate=1e-3)
    later = trial(2, 4.001, learning_rate=3e-3, metrics={"train_seconds": 11.0})

    findings = decide([slow, fast, later], base_value=5.0, margin=0.01)

    assert [standing.number for standing in findings.equivalent] == [0, 1, 2]
    assert "Nothing cheaper" in " ".join(sentences(findings))


def test_single_runs_are_not_claimed_to_be_ordered() -> None:
    words = " ".join(sentences(decide([trial(0, 4.0), trial(1, 4.1)], base_value=5.0, margin=0.01)))

    assert "No noise floor was measured (one run each)" in words
    assert "0.0100 nats) is not known to be real" in words


def test_retrained_finalists_are_judged_by_their_fresh_seeds_alone() -> None:
    lucky, solid = trial(0, 3.90, r=16), trial(1, 3.95, r=16, learning_rate=1e-3)
    fresh = [trial(2 + i, loss, r=16, replicate=i + 1, confirms=0) for i, loss in enumerate([4.0, 4.02, 4.04])]
    fresh += [
        trial(5 + i, loss, r=16, learning_rate=1e-3, replicate=i + 1, confirms=1)
        for i, loss in enumerate([3.95, 3.99, 3.97])
    ]
    unconfirmed = trial(8, 3.94, r=128)

    findings = decide([lucky, solid, *fresh, unconfirmed], base_value=5.0, margin=0.01)

    assert findings.best is not None
    assert (findings.best.number, findings.best.retrainings) == (1, 3)
    assert findings.best.value == pytest.approx(3.97)
    assert findings.best.spread == pytest.approx(0.02)
    assert findings.noise is not None
    assert findings.noise.sd == pytest.approx(0.02)
    assert findings.noise.degrees_of_freedom == 4
    assert findings.noise.smallest_real_difference == pytest.approx(2.776 * 0.02 * math.sqrt(2), rel=1e-3)
    words = " ".join(sentences(findings))
    assert "mean of 3 retrainings ± 0.0200" in words
    assert "trial 1 had said 3.9500" not in words, "a luck of no more than one standard deviation is none"
    assert "single runs cannot settle a tie" in words
    assert dict(findings.states) == {"complete": 3}
    assert findings.retrained == 6


def test_an_unconfirmed_recommendation_and_lost_retrainings_are_named() -> None:
    trials = [
        trial(0, 4.0, r=64),
        trial(1, 4.004, r=4),
        trial(2, 4.0, r=64, replicate=1, confirms=0),
        trial(3, None, r=64, replicate=2, confirms=0, state="diverged"),
        trial(4, None, r=64, replicate=3, confirms=0, state="running"),
    ]

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert findings.noise is None
    words = " ".join(sentences(findings))
    assert "Trial 1 was run once; it is not confirmed" in words
    assert "1 of 2 retrainings of trial 0 did not reach the end" in words
    assert "at most one retraining each" in words


def test_nothing_helped_is_said() -> None:
    findings = decide([trial(0, 5.2, r=64), trial(1, 5.21, r=4)], base_value=5.0, margin=0.01)

    assert not findings.helped
    assert findings.margin == 0
    assert findings.best is not None
    assert findings.best.number == 0
    words = " ".join(sentences(findings))
    assert "0.2000 above the bare base" in words
    assert "Nothing helped" in words


def test_no_finished_trial_gives_no_verdict_and_a_way_out() -> None:
    trials = [trial(0, state="diverged"), trial(1, state="out_of_memory"), trial(2, 4.2, state="pruned")]

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert findings.best is None
    assert findings.cheapest is None
    counts, verdict, way_out = sentences(findings)
    assert counts == "3 trials: 1 pruned, 1 diverged, 1 out of memory."
    assert verdict == "No trial finished, so there is no verdict."
    assert "diverged: lower learning_rate (or its max)" in way_out
    assert "out of memory: lower per_device_train_batch_size or max_length" in way_out


def test_no_trial_at_all() -> None:
    assert sentences(decide([], base_value=5.0, margin=0.01))[0] == "0 trials: none started."


def test_one_trial_and_a_value_that_is_not_finite() -> None:
    findings = decide([trial(0, 4.0), trial(1, math.nan)], base_value=5.0, margin=0.0)

    assert [standing.number for standing in findings.equivalent] == [0]


def test_shared_trials_count_as_finished() -> None:
    findings = decide([trial(0, 4.0, r=8), trial(1, 3.9, r=16, state="shared", source=0)], 5.0, 0.01)

    assert findings.best is not None
    assert findings.best.number == 1


def test_what_the_bare_base_does_not_have_is_not_judged() -> None:
    for measure in (TRAIN_SECONDS, FORGETTING):
        with pytest.raises(InputError, match=rf"\(eval_loss.*\), but measure is {measure.name}"):
            decide([], base_value=5.0, margin=0.01, measure=measure)


def test_a_base_without_a_loss_is_refused() -> None:
    with pytest.raises(InputError, match="base_value must be finite, but is nan"):
        decide([], base_value=math.nan, margin=0.01)


def test_the_simulated_study_has_a_whole_verdict() -> None:
    findings = decide(results(), BASE_LOSS, margin=0.01)

    assert findings.helped
    assert sum(findings.states.values()) == 32
    assert findings.retrained == 9
    assert len(sentences(findings)) >= 4


def replicated(r: int, losses: list[float], first: int, **changes: Any) -> list[TrialResult]:
    return [trial(first + seed, loss, r=r, seed=seed, **changes) for seed, loss in enumerate(losses)]


def test_a_cheaper_configuration_is_recommended_when_a_test_shows_it_to_be_as_good() -> None:
    trials = replicated(64, [4.000, 4.010, 3.990, 4.005], 0)
    trials += replicated(8, [4.001, 4.010, 3.992, 4.007], 10)
    trials += replicated(2, [4.100, 4.112, 4.090, 4.104], 20)

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert findings.tested
    best, worse, equal = findings.rows
    assert (best.decision, best.estimate, best.interval, best.p) == ("best", 0.0, None, None)
    assert (worse.standing.config.lora.r, worse.decision) == (2, "worse")
    assert (equal.standing.config.lora.r, equal.decision, equal.evidence) == (8, "equivalent", "seeds")
    assert equal.estimate == pytest.approx(0.00125)
    assert equal.p is not None
    assert equal.corrected_p == pytest.approx(2 * equal.p)
    assert findings.cheapest is not None
    assert findings.cheapest.config.lora.r == 8
    assert [standing.config.lora.r for standing in findings.equivalent] == [8, 64]
    words = " ".join(sentences(findings))
    assert "mean of 4 seeds" in words
    assert "As good and cheaper: trial 12" in words
    assert "8k trained parameters instead of 64k (8 times fewer)" in words


def test_a_close_mean_that_noise_could_have_made_is_no_tie() -> None:
    trials = replicated(64, [4.00, 4.10, 3.90], 0) + replicated(8, [4.10, 3.95, 3.96], 10)

    findings = decide(trials, base_value=5.0, margin=0.01)

    [_, close] = findings.rows
    assert close.within_margin
    assert close.decision == "undecided"
    assert findings.cheapest is findings.best or findings.cheapest == findings.best
    words = " ".join(sentences(findings))
    assert "Not known: cheaper trial 11" in words
    assert "no reasonable number of seeds decides" in words


def test_a_single_run_within_the_margin_of_retrained_ones_is_not_recommended() -> None:
    trials = [trial(0, 4.0, r=64), trial(1, 4.001, r=4), trial(2, 4.2, r=2)]
    trials += [trial(3 + i, loss, r=64, replicate=i + 1, confirms=0) for i, loss in enumerate([4.0, 4.001, 4.002])]

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert findings.tested
    assert [(row.standing.number, row.decision) for row in findings.rows] == [(0, "best"), (1, "not tested")]
    assert findings.equivalent == (findings.best,)
    words = " ".join(sentences(findings))
    assert "within the margin in a single run, which proves nothing: trial 1" in words
    assert "none is tested against the margin" in words


def test_a_costlier_configuration_is_not_tested_and_takes_no_correction() -> None:
    trials = replicated(8, [4.000, 4.010, 3.990], 0) + replicated(64, [4.001, 4.010, 3.992], 10)

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert [(row.standing.config.lora.r, row.decision, row.p) for row in findings.rows] == [
        (8, "best", None),
        (64, "costlier", None),
    ]


def test_at_equal_parameters_a_jitter_of_time_makes_nothing_cheaper() -> None:
    slow = decide([trial(0, 4.0, r=8), trial(1, 4.0, r=8, learning_rate=1e-3)], 5.0, 0.01).equivalent
    fast, other = slow[0], slow[1]

    def at(standing: Standing, **costs: float) -> Standing:
        return replace(standing, costs={**standing.costs, **costs})

    assert not at(fast, train_seconds=9.9).is_cheaper_than(at(other, train_seconds=10.0))
    assert at(fast, train_seconds=9.0).is_cheaper_than(at(other, train_seconds=10.0))
    assert at(fast, trainable_params=1.0, train_seconds=99.0).is_cheaper_than(other)


def test_the_best_of_several_means_is_also_judged_by_seeds_that_did_not_choose_it() -> None:
    trials = replicated(64, [3.90, 4.06, 4.07], 0) + replicated(8, [4.0, 4.02, 4.03], 10)

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert findings.best is not None
    assert findings.best.value == pytest.approx(4.01)
    assert findings.held_out_value == pytest.approx((4.0 + 4.06 + 4.07) / 3)
    assert "On a seed that did not choose it, the best is worth 4.0433" in " ".join(sentences(findings))


def test_a_single_seed_among_replicated_ones_cannot_be_the_best_by_luck() -> None:
    trials = replicated(64, [4.00, 4.02, 4.01], 0) + replicated(8, [4.1, 4.12, 4.09], 10) + [trial(20, 3.99, r=2)]

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert findings.best is not None
    assert findings.best.config.lora.r == 64
    assert [row.decision for row in findings.rows if row.standing.number == 20] == ["not tested"]


def test_single_runs_have_intervals_over_examples_and_no_test() -> None:
    tokens = np.array([5, 5, 5, 5])
    losses = {
        0: ExampleLosses(np.array([19.0, 20.0, 21.0, 20.0]), tokens),
        1: ExampleLosses(np.array([19.1, 20.0, 21.1, 20.0]), tokens),
    }

    findings = decide([trial(0, 4.0, r=64), trial(1, 4.01, r=4)], base_value=5.0, margin=0.02, losses=losses)

    row = findings.rows[1]
    assert (row.decision, row.evidence, row.p) == ("not tested", "examples", None)
    assert row.interval is not None
    assert row.interval[0] < 0.01 < row.interval[1]
    assert not findings.tested
    assert "This is not tested: it takes replicates." in " ".join(sentences(findings))


def test_nothing_helped_with_replicates_gives_no_tie() -> None:
    trials = replicated(64, [5.2, 5.21, 5.19], 0) + replicated(8, [5.2, 5.21, 5.19], 10)

    findings = decide(trials, base_value=5.0, margin=0.01)

    assert not findings.helped
    assert findings.margin == 0
    assert "Nothing helped" in " ".join(sentences(findings))


def test_the_study_says_what_is_cheap() -> None:
    def seeds(first: int, losses: list[float], r: int, memory: float, seconds: float) -> list[TrialResult]:
        metrics = {"peak_memory_bytes": memory, "train_seconds": seconds}
        return [trial(first + seed, loss, r=r, seed=seed, metrics=metrics) for seed, loss in enumerate(losses)]

    results = [
        *seeds(0, [4.000, 4.001, 4.002], r=64, memory=100e6, seconds=10.0),
        *seeds(10, [4.003, 4.002, 4.004], r=4, memory=90e6, seconds=9.9),
        *seeds(20, [4.004, 4.003, 4.005], r=128, memory=50e6, seconds=5.0),
    ]

    chosen = {cost: decide(results, 5.0, 0.01, cost=cost).cheapest for cost in costs()}

    assert {cost: standing and standing.number for cost, standing in chosen.items()} == {
        "trainable_params": 11,
        "peak_memory_bytes": 21,
        "train_seconds": 21,
    }
    by_memory = " ".join(sentences(decide(results, 5.0, 0.01, cost="peak_memory_bytes")))
    assert "47.7 MiB of peak memory instead of 95.4 MiB" in by_memory
    by_time = " ".join(sentences(decide(results, 5.0, 0.01, cost="train_seconds")))
    assert "5.0 s of training time instead of 10 s" in by_time
