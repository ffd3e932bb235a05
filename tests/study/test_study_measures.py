"""The table of measures: one entry is all that the settings, the words and the tables ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from analysis.simulated import results, trial
from pydantic import ValidationError

from lora_lab.analysis.wording import WRITTEN, measure_text
from lora_lab.figures.tables import trials_table
from lora_lab.study.measures import (
    EVAL_LOSS,
    EXACT_MATCH,
    MEASURES,
    TRAINABLE_PARAMS,
    costs,
    metrics,
    objectives,
    price,
)
from lora_lab.study.settings import EvaluationSettings
from lora_lab.study.sweep import Metric, Verdict

if TYPE_CHECKING:
    from lora_lab.study.measures import Measure


def test_the_names_of_a_study_file_are_those_of_the_table() -> None:
    assert objectives() == ["eval_loss", "forgetting", *metrics(), *costs()]
    assert metrics() == [
        "perplexity",
        "token_accuracy",
        "exact_match",
        "f1",
        "rouge1",
        "rougeL",
        "bleu",
        "chrf",
        "json_match",
        "classification_accuracy",
        "macro_f1",
        "accuracy",
        "accuracy_norm",
    ]
    assert metrics("SEQ_CLS") == ["macro_f1", "accuracy"]
    assert metrics("CAUSAL_LM") == metrics()
    assert costs() == ["trainable_params", "peak_memory_bytes", "train_seconds"]
    scores = [name for name in metrics() if name != "perplexity"]
    assert all(Metric(name=name).goal == "minimize" for name in objectives() if name not in scores)
    assert all(Metric(name=name).goal == "maximize" for name in scores)
    assert all(Verdict(cost=name).cost == name for name in costs())


def test_a_metric_of_both_tasks_is_made_of_classes_in_one_of_them() -> None:
    settings = EvaluationSettings(metrics=("macro_f1", "accuracy", "perplexity"))
    found = {source: settings.metrics_of(source, "CAUSAL_LM") for source in ("answers", "choices", "classes", "tokens")}
    assert found == {"answers": ["macro_f1"], "choices": ["accuracy"], "classes": [], "tokens": ["perplexity"]}
    assert settings.metrics_of("classes", "SEQ_CLS")[:2] == ["macro_f1", "accuracy"]
    assert settings.metrics_of("choices", "SEQ_CLS") == []
    assert EVAL_LOSS.source_in("SEQ_CLS") == "always"


@pytest.mark.parametrize("name", ["auc", "tokens_per_second"])
def test_what_is_no_objective_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ValidationError, match="'eval_loss', 'forgetting', 'perplexity'"):
        Metric(name=name)
    with pytest.raises(ValidationError, match="'trainable_params', 'peak_memory_bytes', 'train_seconds'"):
        Verdict(cost=name)


def test_a_score_is_maximized_without_saying_so(accuracy: Measure) -> None:
    assert Metric.model_validate({"name": accuracy.name}).goal == "maximize"
    assert accuracy.name in objectives()
    assert accuracy.name not in costs()


def test_a_goal_against_the_measure_is_refused() -> None:
    with pytest.raises(ValidationError, match="eval_loss is to minimize, but goal is maximize; leave it out"):
        Metric(name="eval_loss", goal="maximize")


def test_a_score_and_its_loss_are_each_other_turned_round(accuracy: Measure) -> None:
    assert accuracy.as_loss(0.8) == -0.8
    assert accuracy.as_loss(accuracy.as_loss(0.8)) == 0.8
    assert accuracy.interval((-1.05, -0.9)) == (0.9, 1.0)
    assert EVAL_LOSS.interval((2.0, 3.0)) == (2.0, 3.0)
    assert [accuracy.can_be(value) for value in (0.0, 1.0, 1.2, -0.1, float("nan"))] == [
        True,
        True,
        False,
        False,
        False,
    ]


def test_every_style_is_written_and_every_header_stands_in_the_table_of_trials(accuracy: Measure) -> None:
    assert {measure.style for measure in MEASURES.values()} <= WRITTEN.keys()
    assert measure_text(accuracy, 0.8126) == "0.813"
    figures = {name: 0.5 for name, measure in MEASURES.items() if measure.header}
    headers = trials_table([trial(0, 4.0, metrics=figures)], None).headers
    assert {measure.header for measure in MEASURES.values() if measure.header} <= set(headers)


def test_every_figure_of_a_trial_is_in_the_table() -> None:
    assert {name for result in results() for name in result.metrics} <= MEASURES.keys()


def test_trials_are_ordered_by_the_cost_of_the_study_then_by_the_usual_ones() -> None:
    figures = {"trainable_params": 7.0, "train_seconds": 3.0, "peak_memory_bytes": 5.0}
    assert price(figures, TRAINABLE_PARAMS.name, 9) == (7.0, 7.0, 3.0, 9)
    assert price(figures, "peak_memory_bytes", 9) == (5.0, 7.0, 3.0, 9)
    assert price({}, "train_seconds", 1) == (float("inf"),) * 3 + (1,)


def test_a_score_of_nothing_is_no_negative_zero():
    as_loss = EXACT_MATCH.as_loss(0.0)
    assert str(as_loss) == str(EXACT_MATCH.as_loss(as_loss)) == "0.0"
