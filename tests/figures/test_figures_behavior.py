"""The panels of what trials do: metrics, metric against loss, answers, tasks; everything foreign is escaped."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.simulated import results, study

from lora_lab.analysis.agreement import agreement
from lora_lab.analysis.metric_values import FinalistValues, MetricValue, finalists
from lora_lab.figures.behavior import behavior_panels
from lora_lab.figures.evidence import AnsweredRow, Answers
from lora_lab.figures.markdown import markdown_summary
from lora_lab.study.measures import EXACT_MATCH
from lora_lab.study.task_scores import TaskScore, TaskScores

if TYPE_CHECKING:
    from collections.abc import Callable

    from figures.conftest import Page

    from lora_lab.figures.evidence import Evidence

HOSTILE = "</td><script>alert(1)</script>| **x**"


def filled(whole: Evidence) -> dict[str, object]:
    """The fields of a study that measured more than losses."""
    trials = [
        replace(one, metrics={**one.metrics, "exact_match": 1 - one.metrics["eval_loss"] / 6}) if one.has_value else one
        for one in results()
    ]
    best, *_ = chosen = finalists(whole.findings)
    value = MetricValue(measure=EXACT_MATCH, value=0.5, interval=(0.4, 0.6), evidence="seeds and examples", runs=3)
    found = agreement(trials, EXACT_MATCH)
    assert found is not None
    row = AnsweredRow(
        prompt="x" * 400 + HOSTILE,
        reference="ref",
        base=HOSTILE,
        answers={one.number: HOSTILE if one is best else " " for one in chosen},
    )
    labels = {one.number: one.label for one in chosen}
    columns = {"base": {"acc": TaskScore(0.25, 0.01)}, str(best.number): {"acc": TaskScore(0.5, None)}}
    task = TaskScores(task="mmlu", settings={"limit": 5}, higher_is_better={"acc": True}, columns=columns)
    return {
        "values": [FinalistValues(best, [value])],
        "base_values": {"exact_match": 0.125},
        "agreements": [found],
        "answers": Answers(labels, [row] * 12, 40, 30, has_base=True),
        "task_scores": [task],
    }


def test_the_page_has_all_of_it_and_runs_nothing_of_it(whole: Evidence, report: Callable[..., Page]) -> None:
    page = report(results(), study(), **filled(whole))
    assert {"about-metrics", "about-loss-and-exact-match", "about-answers", "about-tasks"} <= page.ids
    for words in (
        "Metrics of the finalists",
        "0.400 to 0.600",
        "seeds and examples",
        "0.125",
        "Would loss have chosen the same? Exact match against loss",
        "Spearman's rank correlation",
        "12 of 40 held-out prompts",
        "(nothing)",
        "0.2500 ± 0.0100",
        "only a part of the documents",
    ):
        assert words in page.words, words
    assert "alert(1)" in page.words
    assert not any("alert" in script for script in page.scripts)
    assert "…" + ("x" * 400 + HOSTILE)[-240:] in page.words


def test_the_summary_has_the_tables_without_markup_of_others(whole: Evidence) -> None:
    evidence = replace(whole, **filled(whole))
    text = markdown_summary(evidence, behavior_panels(evidence))
    for title in ("Metrics of the finalists", "Answers side by side", "Tasks of lm-evaluation-harness", "Would loss"):
        assert f"## {title}" in text
    assert "<script>" not in text.replace("\\<", "")
    assert "| mmlu | acc | 0.2500 ± 0.0100 |" in text


def test_a_study_of_losses_alone_has_none_of_it(whole: Evidence, page: Page) -> None:
    assert behavior_panels(whole) == []
    assert "Answers side by side" not in page.words
