from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
from analysis.simulated import trial

from lora_lab.analysis.equal_budget import compare_arms

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult

PER_RANK = {"attention": 1000, "mlp": 4000}


def arm(first: int, targets: str, losses: dict[int, float], seeds: int = 1, **params: Any) -> list[TrialResult]:
    wobble = {"attention": (0.0, 0.001, -0.001), "mlp": (0.001, -0.001, 0.0)}[targets]
    return [
        trial(
            first + 10 * index + seed,
            loss + (wobble[seed] if seeds > 1 else 0.0),
            r=r,
            target_modules=targets,
            seed=seed,
            metrics={"trainable_params": float(r * PER_RANK[targets])},
            **params,
        )
        for index, (r, loss) in enumerate(losses.items())
        for seed in range(seeds)
    ]


def both(seeds: int = 1) -> list[TrialResult]:
    attention = arm(0, "attention", {4: 4.4, 16: 4.2, 64: 4.0}, seeds)
    return attention + arm(100, "mlp", {4: 4.15, 16: 4.05}, seeds)


def test_attention_and_attention_with_experts_are_two_target_sets() -> None:
    with_experts = arm(100, "attention", {4: 4.15, 16: 4.05}, target_parameters="experts")
    found = compare_arms([*arm(0, "attention", {4: 4.4, 16: 4.2}), *with_experts], "target_modules")
    assert found is not None
    assert [one.arms[0].arm for one in found.at_equal_rank] == ["attention+experts"] * 2
    assert found.at_equal_rank[0].arms[1].arm == "attention"


def test_equal_rank_and_equal_budget_can_disagree() -> None:
    found = compare_arms(both(), "target_modules")

    assert found is not None
    four, sixteen = found.at_equal_rank
    assert [(one.r, one.arms[0].arm) for one in (four, sixteen)] == [(4, "mlp"), (16, "mlp")]
    assert four.arms[1].difference == pytest.approx(0.25)
    low, middle, high = found.at_equal_budget
    assert [one.trainable_params for one in (low, middle, high)] == [16_000, 32_000, 64_000]
    assert [one.arms[0].arm for one in (low, middle, high)] == ["mlp", "attention", "attention"]
    assert high.arms[0].value == pytest.approx(4.0)
    assert middle.arms[0].value == pytest.approx(4.1)
    assert middle.arms[0].numbers == (10, 20)
    assert middle.arms[1].value == pytest.approx(4.15 - 0.1 * math.log(2) / math.log(4))
    assert {one.known for comparison in found.at_equal_budget for one in comparison.arms} == {None}
    assert "not tested against mlp (0.0000 nats above)" in found.sentence


def test_replicates_show_which_differences_are_real() -> None:
    found = compare_arms(both(seeds=3), "target_modules")

    assert found is not None
    for comparison in (*found.at_equal_rank, found.at_equal_budget[2]):
        assert [one.known for one in comparison.arms] == [None, True]
    middle = found.at_equal_budget[1]
    assert middle.arms[1].difference == pytest.approx(0.0)
    assert middle.arms[1].known is False
    assert middle.arms[0].interval is not None


def test_each_arm_is_taken_at_its_best_other_settings() -> None:
    trials = both() + arm(200, "attention", {4: 4.1}, learning_rate=1e-3)

    found = compare_arms(trials, "target_modules")

    assert found is not None
    best = found.at_equal_rank[0].arms[0]
    assert (best.arm, best.numbers, best.tried) == ("attention", (200,), 2)


def test_budgets_that_do_not_overlap_are_not_compared() -> None:
    trials = arm(0, "attention", {4: 4.4, 8: 4.2}) + arm(100, "mlp", {4: 4.15, 16: 4.05})

    found = compare_arms(trials, "target_modules")

    assert found is not None
    assert found.at_equal_budget == ()
    assert "the ranges that were tried do not overlap" in found.sentence


def test_a_single_common_budget_is_compared_once() -> None:
    trials = arm(0, "attention", {16: 4.4}) + arm(100, "mlp", {4: 4.15})

    found = compare_arms(trials, "target_modules")

    assert found is not None
    [only] = found.at_equal_budget
    assert [one.arm for one in only.arms] == ["mlp", "attention"]
    assert "At an equal budget of 16k trained parameters the best target set is mlp" in found.sentence


def test_one_arm_is_no_comparison() -> None:
    assert compare_arms(both(), "layers") is None
