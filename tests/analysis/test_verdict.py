from __future__ import annotations

import math

import pytest
from analysis.simulated import BASE_LOSS, results, trial

from lora_lab.analysis.verdict import decide, sentences
from lora_lab.study.errors import InputError


def test_the_cheapest_configuration_that_ties_is_recommended() -> None:
    trials = [trial(0, 4.0, r=64), trial(1, 4.009, r=8), trial(2, 4.0095, r=4), trial(3, 4.02, r=2)]

    findings = decide(trials, base_loss=5.0, margin=0.01)

    assert findings.best is not None
    assert findings.best.number == 0
    assert findings.margin == pytest.approx(0.01)
    assert [standing.number for standing in findings.equivalent] == [2, 1, 0]
    assert findings.cheapest is findings.equivalent[0]
    words = " ".join(sentences(findings))
    assert "2 other trials come within 1% of that gain (0.0100 nats)" in words
    assert "4k trained parameters instead of 64k (16 times fewer)" in words


def test_equal_cost_falls_back_to_time_and_then_to_the_lower_number() -> None:
    slow, fast, later = trial(0, 4.0), trial(1, 4.001), trial(2, 4.001, metrics={"train_seconds": 11.0})

    findings = decide([slow, fast, later], base_loss=5.0, margin=0.01)

    assert [standing.number for standing in findings.equivalent] == [0, 1, 2]
    assert "Nothing cheaper" in " ".join(sentences(findings))


def test_single_runs_are_not_claimed_to_be_ordered() -> None:
    words = " ".join(sentences(decide([trial(0, 4.0), trial(1, 4.1)], base_loss=5.0, margin=0.01)))

    assert "No noise floor was measured (one run each)" in words
    assert "0.0100 nats) is not known to be real" in words


def test_retrained_finalists_are_judged_by_their_fresh_seeds_alone() -> None:
    lucky, solid = trial(0, 3.90, r=16), trial(1, 3.95, r=16)
    fresh = [trial(2 + i, loss, r=16, replicate=i + 1, confirms=0) for i, loss in enumerate([4.0, 4.02, 4.04])]
    fresh += [trial(5 + i, loss, r=16, replicate=i + 1, confirms=1) for i, loss in enumerate([3.95, 3.97, 3.99])]
    unconfirmed = trial(8, 3.94, r=128)

    findings = decide([lucky, solid, *fresh, unconfirmed], base_loss=5.0, margin=0.01)

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
    assert "trial 1 had said 3.9500" in words
    assert "the tie is wider than it looks" in words
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

    findings = decide(trials, base_loss=5.0, margin=0.01)

    assert findings.noise is None
    words = " ".join(sentences(findings))
    assert "Trial 1 was run once; it is not confirmed" in words
    assert "1 of 2 retrainings of trial 0 did not reach the end" in words
    assert "at most one retraining each" in words


def test_nothing_helped_is_said() -> None:
    findings = decide([trial(0, 5.2, r=64), trial(1, 5.21, r=4)], base_loss=5.0, margin=0.01)

    assert not findings.helped
    assert findings.margin == 0
    assert findings.best is not None
    assert findings.best.number == 0
    words = " ".join(sentences(findings))
    assert "0.2000 above the bare base" in words
    assert "Nothing helped" in words


def test_no_finished_trial_gives_no_verdict_and_a_way_out() -> None:
    trials = [trial(0, state="diverged"), trial(1, state="out_of_memory"), trial(2, 4.2, state="pruned")]

    findings = decide(trials, base_loss=5.0, margin=0.01)

    assert findings.best is None
    assert findings.cheapest is None
    counts, verdict, way_out = sentences(findings)
    assert counts == "3 trials: 1 pruned, 1 diverged, 1 out of memory."
    assert verdict == "No trial finished, so there is no verdict."
    assert "diverged: lower learning_rate (or its max)" in way_out
    assert "out of memory: lower per_device_train_batch_size or max_length" in way_out


def test_no_trial_at_all() -> None:
    assert sentences(decide([], base_loss=5.0, margin=0.01))[0] == "0 trials: none started."


def test_one_trial_and_a_value_that_is_not_finite() -> None:
    findings = decide([trial(0, 4.0), trial(1, math.nan)], base_loss=5.0, margin=0.0)

    assert [standing.number for standing in findings.equivalent] == [0]


def test_shared_trials_count_as_finished() -> None:
    findings = decide([trial(0, 4.0, r=8), trial(1, 3.9, r=8, state="shared", source=0)], 5.0, 0.01)

    assert findings.best is not None
    assert findings.best.number == 1


def test_forgetting_can_be_the_metric() -> None:
    trials = [trial(0, 4.0, metrics={"forgetting": 0.3}), trial(1, 4.1, metrics={"forgetting": -0.1})]

    findings = decide(trials, base_loss=0.0, margin=0.1, metric="forgetting")

    assert findings.best is not None
    assert findings.best.number == 1
    assert findings.helped


def test_a_metric_that_is_no_loss_is_refused() -> None:
    with pytest.raises(InputError, match=r"eval_loss or forgetting.*metric is train_seconds"):
        decide([], base_loss=5.0, margin=0.01, metric="train_seconds")


def test_a_base_without_a_loss_is_refused() -> None:
    with pytest.raises(InputError, match="base_loss must be finite, but is nan"):
        decide([], base_loss=math.nan, margin=0.01)


def test_the_simulated_study_has_a_whole_verdict() -> None:
    findings = decide(results(), BASE_LOSS, margin=0.01)

    assert findings.helped
    assert sum(findings.states.values()) == 32
    assert findings.retrained == 9
    assert len(sentences(findings)) >= 4
