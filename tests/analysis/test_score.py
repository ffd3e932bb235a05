"""A score is judged as the loss that it is the opposite of: same best, ties, p-values and fronts, in its own words."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from analysis.simulated import BASE_LOSS, results

from lora_lab.analysis.adequate_rank import rank_curves
from lora_lab.analysis.pareto import front
from lora_lab.analysis.verdict import decide
from lora_lab.analysis.verdict_words import facts, sentences
from lora_lab.figures.fronts import pareto_panel
from lora_lab.figures.ranks import adequate_ranks
from lora_lab.figures.verdict import verdict_table
from lora_lab.terminal.end_table import end_table

if TYPE_CHECKING:
    from lora_lab.study.measures import Measure
    from lora_lab.study.results import TrialResult

STEEP = 0.25
"""Points of accuracy for a nat."""
BASE_ACCURACY = 0.125


def accuracy_of(loss: float) -> float:
    return BASE_ACCURACY + STEEP * (BASE_LOSS - loss)


def scored() -> list[TrialResult]:
    """The simulated study, of which every trial also has an accuracy that says the same as its loss."""
    return [
        replace(one, metrics={**one.metrics, "accuracy": accuracy_of(one.metrics["eval_loss"])})
        if one.has_value
        else one
        for one in results()
    ]


def test_the_verdict_on_a_score_is_that_on_its_loss(accuracy: Measure) -> None:
    trials = scored()

    by_loss, by_score = decide(trials, BASE_LOSS, 0.02), decide(trials, BASE_ACCURACY, 0.02, accuracy)

    assert by_score.best is not None
    assert by_loss.best is not None
    assert by_score.best.number == by_loss.best.number
    assert by_score.best.value == pytest.approx(accuracy_of(by_loss.best.value))
    assert by_score.best.search_value == pytest.approx(accuracy_of(by_loss.best.search_value))
    assert by_score.gain == pytest.approx(STEEP * by_loss.gain)
    assert by_score.margin == pytest.approx(STEEP * by_loss.margin)
    assert [row.decision for row in by_score.rows] == [row.decision for row in by_loss.rows]
    for score, loss in zip(by_score.rows, by_loss.rows, strict=True):
        assert score.standing.number == loss.standing.number
        assert score.estimate == pytest.approx(STEEP * loss.estimate)
        assert (score.p is None) == (loss.p is None)
        assert score.p is None or score.p == pytest.approx(loss.p, rel=1e-6)
        low, high = score.value_interval or (0, 0)
        assert low < score.standing.value < high


def test_a_margin_may_be_given_in_points_or_nats(accuracy: Measure) -> None:
    trials = scored()

    share = decide(trials, BASE_ACCURACY, 0.02, accuracy)
    points = decide(trials, BASE_ACCURACY, 0.5, accuracy, absolute_margin=share.margin)

    assert points.margin == share.margin
    assert [row.decision for row in points.rows] == [row.decision for row in share.rows]
    words = " ".join(sentences(points))
    assert f"the margin of {share.margin:.3f} points" in words
    assert "% of that gain" not in words
    assert "margin, share of the gain" not in {fact.name for fact in facts(points)}


def test_its_sentences_and_tables_are_in_points_and_the_right_way_round(accuracy: Measure) -> None:
    trials = scored()
    findings = decide(trials, BASE_ACCURACY, 0.02, accuracy)
    words = " ".join(sentences(findings))

    assert findings.best is not None
    assert f"reaches accuracy {findings.best.value:.3f} (mean of 3 retrainings" in words
    assert f"{findings.gain:.3f} above the bare base ({BASE_ACCURACY:.3f})" in words
    assert "nats" not in words
    table = verdict_table(findings)
    assert {"accuracy, points", "accuracy, 95%", "below best, points"} <= set(table.headers)
    assert f"{findings.best.value:.3f}" in {cell.text for cell in table.rows[0]}
    assert end_table(trials, findings, 80)[0].columns[1].header == "accuracy"
    curves = rank_curves(trials, findings, {})
    assert all(f"points below it; margin {curve.margin:.3f})" in curve.sentence for curve in curves)
    panel = adequate_ranks(curves)
    assert panel.figure is not None
    assert panel.figure.layout.yaxis.title.text == "accuracy"


def test_the_rank_curve_of_a_score_is_that_of_its_loss(accuracy: Measure) -> None:
    trials = scored()
    by_loss = rank_curves(trials, decide(trials, BASE_LOSS, 0.02), {})
    by_score = rank_curves(trials, decide(trials, BASE_ACCURACY, 0.02, accuracy), {})

    def found(curves: list) -> list:
        return [(c.targets, c.layers, c.best_r, c.smallest_adequate_r, [p.number for p in c.points]) for c in curves]

    assert found(by_score) == found(by_loss)
    values = [point.value for curve in by_score for point in curve.points]
    assert values == pytest.approx([accuracy_of(point.value) for curve in by_loss for point in curve.points])


def test_the_front_of_a_score_is_that_of_its_loss(accuracy: Measure) -> None:
    trials = scored()

    by_loss, by_score = front(trials), front(trials, measure=accuracy)

    assert by_loss is not None
    assert by_score is not None
    assert [member.number for member in by_score.members] == [member.number for member in by_loss.members]
    assert [m.probability for m in by_score.members] == pytest.approx([m.probability for m in by_loss.members])
    assert by_score.members[0].values[0] == pytest.approx(accuracy_of(by_loss.members[0].values[0]))
    assert by_score.hypervolume == pytest.approx(by_loss.hypervolume)
    panel = pareto_panel(by_score, trials)
    assert panel.title == "Accuracy against trained parameters"
    assert panel.words.startswith("Up and left is better.")


def test_an_interval_of_a_score_ends_where_scores_do(accuracy: Measure) -> None:
    near_the_top = [
        replace(one, metrics={**one.metrics, "accuracy": 1 - 0.2 * (one.metrics["eval_loss"] - 3.9)})
        if one.has_value
        else one
        for one in results()
    ]

    findings = decide(near_the_top, 0.1, 0.02, accuracy)

    intervals = [row.value_interval for row in findings.rows if row.value_interval]
    assert intervals
    assert all(high <= 1.0 for _, high in intervals)


def test_after_the_chosen_ones_the_better_scores_come_first(accuracy: Measure) -> None:
    findings = decide(scored(), BASE_ACCURACY, 0.02, accuracy)
    assert findings.best is not None
    first, *others = findings.compared
    assert first == findings.best
    rest = [one.value for one in others if one != findings.cheapest]
    assert len(rest) > 1
    assert rest == sorted(rest, reverse=True)
    assert findings.roles(findings.best.number)[0] == "best"
