from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from analysis.simulated import trial

from lora_lab.analysis.adequate_rank import rank_curves
from lora_lab.analysis.paired import ExampleLosses
from lora_lab.analysis.verdict import decide

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.analysis.adequate_rank import RankCurve
    from lora_lab.study.results import TrialResult

NO_LOSSES: Mapping[int, ExampleLosses] = {}


def curves_of(
    trials: list[TrialResult], losses: Mapping[int, ExampleLosses] = NO_LOSSES, margin: float = 0.01, **options: Any
) -> list[RankCurve]:
    return rank_curves(trials, decide(trials, 5.0, margin, losses=losses, **options), losses)


def cell(first: int, losses: list[float], **params: Any) -> list[TrialResult]:
    return [trial(first + seed, loss, seed=seed, **params) for seed, loss in enumerate(losses)]


def grid() -> list[TrialResult]:
    """Rank 4 is too small, 16 is enough at its own rate, and looks too small at the rate that suits 64."""
    shape = [0.000, 0.004, -0.004]
    means = {(4, 1e-3): 4.10, (4, 3e-3): 4.08, (16, 1e-3): 4.09, (16, 3e-3): 4.001, (64, 1e-3): 4.0, (64, 3e-3): 4.06}
    wobble = {4: [0.0005, 0, -0.0005], 16: [-0.0005, 0.0005, 0], 64: [0, -0.0005, 0.0005]}
    return [
        result
        for index, ((r, rate), mean) in enumerate(means.items())
        for result in cell(
            10 * index, [mean + s + w for s, w in zip(shape, wobble[r], strict=True)], r=r, learning_rate=rate
        )
    ]


def test_each_rank_stands_at_its_own_best_rate_and_is_tested() -> None:
    [curve] = curves_of(grid())

    assert (curve.targets, curve.layers, curve.best_r, curve.smallest_adequate_r) == ("all-linear", "all", 64, 16)
    assert curve.tested
    assert curve.margin == pytest.approx(0.01)
    assert [(point.r, point.learning_rate, point.decision) for point in curve.points] == [
        (4, 3e-3, "worse"),
        (16, 3e-3, "equivalent"),
        (64, 1e-3, "best"),
    ]
    small, enough, best = curve.points
    assert small.p is not None
    assert small.p > 0.5
    assert enough.p is not None
    assert enough.p < 0.05
    assert best.p is None
    assert (enough.runs, enough.tried, enough.rates) == (3, 2, 2)
    assert enough.difference == pytest.approx(0.001)
    assert enough.interval is not None
    assert "all-linear: the smallest adequate rank is 16 of 4, 16, 64: shown to be within the margin" in curve.sentence


def test_without_replicates_the_means_decide_and_it_is_said() -> None:
    trials = [trial(0, 4.0, r=64), trial(1, 4.005, r=16), trial(2, 4.3, r=4)]

    [curve] = curves_of(trials)

    assert (curve.smallest_adequate_r, curve.tested) == (16, False)
    assert "by its mean, which is not a test" in curve.sentence
    assert "Every rank had a single learning rate" in curve.sentence


def test_the_best_rank_can_be_the_smallest_adequate_one() -> None:
    [curve] = curves_of([trial(0, 4.0, r=64), trial(1, 4.5, r=16)])

    assert curve.smallest_adequate_r == curve.best_r == 64
    assert "no smaller one is within the margin" in curve.sentence


def test_target_sets_have_curves_of_their_own() -> None:
    trials = [
        trial(index, 4.0 + 0.1 * index, r=r, target_modules=targets)
        for index, (r, targets) in enumerate(
            [(4, "mlp"), (8, "mlp"), (4, "attention"), (8, "attention"), (4, "all-linear")]
        )
    ]

    curves = curves_of(trials)

    assert [(curve.targets, curve.best_r) for curve in curves] == [("attention", 4), ("mlp", 4)]


def test_where_ranks_are_tested_a_single_run_is_not_adequate() -> None:
    trials = [*cell(0, [4.0, 4.01, 3.99], r=64), *cell(10, [4.001, 4.01, 3.992], r=16), trial(20, 4.0, r=4)]

    [curve] = curves_of(trials)

    assert (curve.smallest_adequate_r, curve.best_r, curve.tested) == (16, 64, True)
    assert [point.decision for point in curve.points] == ["not tested", "equivalent", "best"]
    assert "Within the margin by its mean, and not tested: rank 4." in curve.sentence


def over_examples() -> tuple[list[TrialResult], dict[int, ExampleLosses]]:
    """Three ranks by three seeds on 80 texts: the smaller ranks are better on some texts and worse on others."""
    rng = np.random.default_rng(5)
    count, trials, losses = 80, [], {}
    tokens, examples = np.full(count, 100), rng.normal(4.0, 0.4, count)
    for r, above in ((8, 0.008), (16, 0.004), (64, 0.0)):
        taste = rng.normal(0, 0.12, count) if r != 64 else np.zeros(count)
        for seed in range(3):
            nll = (examples + above + taste - taste.mean() + rng.normal(0, 0.003)) * tokens
            losses[len(trials)] = ExampleLosses(nll, tokens)
            trials.append(trial(len(trials), float(nll.sum() / tokens.sum()), r=r, seed=seed))
    return trials, losses


@pytest.mark.parametrize("with_losses", [False, True])
def test_the_curve_says_of_every_rank_what_the_verdict_says(with_losses: bool) -> None:
    trials, losses = over_examples()
    losses = losses if with_losses else {}
    findings = decide(trials, 5.0, 0.025, losses=losses)
    rows = {row.standing.config.lora.r: row for row in findings.rows}

    [curve] = rank_curves(trials, findings, losses)

    assert findings.cheapest is not None
    assert curve.smallest_adequate_r == findings.cheapest.config.lora.r == (64 if with_losses else 8)
    assert curve.own_family == 0
    assert curve.margin == findings.margin
    assert {point.r: (point.number, point.decision, point.p, point.difference) for point in curve.points} == {
        r: (row.standing.number, row.decision, row.corrected_p, row.estimate) for r, row in rows.items()
    }
    if with_losses:
        assert "no smaller one is shown to be as good" in curve.sentence
        assert "Within the margin by its mean, and not shown to be: rank 8 and 16." in curve.sentence


def test_the_family_is_the_verdicts_over_all_target_sets() -> None:
    """Four narrower configurations of another target set are tested too: the curve's p-values pay for them."""
    alone = [*cell(0, [4.0, 4.01, 3.99], r=64), *cell(10, [4.006, 4.012, 3.997], r=16)]
    others = [
        one
        for index, r in enumerate((4, 8, 16, 32))
        for one in cell(100 + 10 * index, [4.2, 4.213, 4.192], r=r, target_modules="mlp")
    ]
    findings = decide([*alone, *others], 5.0, 0.01)

    wide, narrow = rank_curves([*alone, *others], findings, {})

    [verdict_p] = [row.corrected_p for row in findings.rows if row.standing.number == 10 + 2]
    assert (wide.targets, wide.points[0].p, wide.own_family) == ("all-linear", verdict_p, 0)
    assert (narrow.targets, narrow.best_r, narrow.own_family) == ("mlp", 4, 0)


def test_a_target_set_with_a_best_of_its_own_says_that_its_family_is_apart() -> None:
    trials = [
        *cell(0, [4.0, 4.01, 3.99], r=64),
        *cell(10, [4.2, 4.212, 4.193], r=4, target_modules="mlp"),
        *cell(20, [4.1, 4.112, 4.089], r=16, target_modules="mlp"),
    ]

    [curve] = curves_of(trials)

    assert (curve.targets, curve.smallest_adequate_r, curve.own_family) == ("mlp", 16, 1)
    assert "Its 1 comparison are" not in curve.sentence
    assert "Its comparisons (1) are corrected apart from those of the verdict." in curve.sentence


def test_ranks_that_cost_no_less_are_still_tested_and_it_is_said() -> None:
    """A verdict that calls less training time cheaper has nothing to test here; the rank is the question still."""
    trials = [
        *cell(0, [4.0, 4.01, 3.99], r=64),
        *(
            trial(10 + s, 4.001 + w, r=16, seed=s, metrics={"train_seconds": 99.0})
            for s, w in enumerate((0, 0.01, -0.009))
        ),
    ]
    findings = decide(trials, 5.0, 0.01, cost="train_seconds")

    [curve] = rank_curves(trials, findings, {})

    assert [row.decision for row in findings.rows] == ["best", "costlier"]
    assert (curve.smallest_adequate_r, curve.own_family) == (16, 1)


def test_a_rank_is_shown_at_the_configuration_that_passed() -> None:
    """The lowest mean of rank 16 in the search is a single run; another configuration of it was tested."""
    trials = [
        *cell(0, [4.0, 4.01, 3.99], r=64),
        *cell(10, [4.003, 4.013, 3.994], r=16, learning_rate=1e-3),
        trial(20, 3.999, r=16, learning_rate=3e-3),
    ]

    [curve] = curves_of(trials)

    assert [(point.r, point.number, point.decision) for point in curve.points] == [
        (16, 12, "equivalent"),
        (64, 2, "best"),
    ]
    assert "(0.0033 nats above it; margin 0.0100)" in curve.sentence


def test_one_replicated_rank_does_not_bar_the_others_from_being_the_best() -> None:
    trials = [*cell(0, [4.3, 4.31, 4.29], r=4), trial(10, 4.2, r=16), trial(20, 4.0, r=64), trial(30, 4.1, r=128)]

    [curve] = curves_of(trials)

    assert (curve.best_r, curve.smallest_adequate_r, curve.tested) == (64, 64, False)


def test_a_distance_that_equals_the_margin_as_written_is_within_it() -> None:
    [curve] = curves_of([trial(0, 1.0, r=64), trial(1, 1.002, r=16)], margin=0.002 / 4.0)

    assert curve.smallest_adequate_r == 16


def test_where_no_smaller_rank_has_replicates_nothing_is_called_shown_or_not() -> None:
    [curve] = curves_of([*cell(0, [4.0, 4.01, 3.99], r=64), trial(10, 4.001, r=16)])

    assert curve.smallest_adequate_r == 64
    assert "no smaller one was trained with several seeds, so none is tested" in curve.sentence
    assert "and not tested: rank 16" in curve.sentence
