from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.simulated import results, study, trial

from lora_lab.figures.cells import Table, number_cell, text_cell
from lora_lab.figures.markdown import markdown_summary, markdown_table
from lora_lab.figures.report import panels_of, write_report
from lora_lab.study.spec import StudySpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def summary(evidence: Callable, *arguments: object) -> str:
    whole = evidence(*arguments)
    return markdown_summary(whole, panels_of(whole))


def section(text: str, title: str) -> list[str]:
    return text.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0].strip().splitlines()


def test_the_summary_holds_question_verdict_caveats_and_the_best_trials(evidence: Callable) -> None:
    text = summary(evidence, results())

    assert text.startswith("# How do rank and alpha trade off against loss, memory and trainable parameters?\n")
    assert "- Best: trial 25 (r=128" in text
    assert "## Read with care" in text
    best = section(text, "The best trials of the search")
    assert len(best) == 2 + 8
    losses = [float(line.split("|")[2]) for line in best[2:]]
    assert losses == sorted(losses)


def test_the_summary_holds_the_verdicts_table_and_the_key_tables(evidence: Callable) -> None:
    text = summary(evidence, results())

    verdict = section(text, "What the verdict rests on")
    assert verdict[0].startswith("| trial | configuration | decision | loss, nats | loss, 95% |")
    assert verdict[2].startswith("| 25 |")
    for title in ("Smallest adequate rank", "Loss against trained parameters"):
        words, _, head, rule, *rows = section(text, title)
        assert words.endswith(".")
        assert set(rule) <= set("|-:")
        assert rows
        assert {row.replace("\\|", "").count("|") for row in rows} == {head.count("|")}


def test_what_is_said_of_test_rows_stands_in_summary_and_report(evidence: Callable, tmp_path: Path) -> None:
    whole = replace(evidence(results()), on_test="eval_loss on rows that chose nothing: 4.1.")
    panels = panels_of(whole)
    assert "\n- eval\\_loss on rows that chose nothing: 4.1.\n" in markdown_summary(whole, panels)
    write_report(tmp_path / "report.html", whole, panels)
    assert "<li>eval_loss on rows that chose nothing: 4.1.</li>" in (tmp_path / "report.html").read_text()


def test_hostile_text_is_no_markup(evidence: Callable) -> None:
    hostile = "a|b <img src=x> [x](http://evil.example) `c`\n# title"
    spec = StudySpec.model_validate({**study().model_dump(), "question": hostile})

    text = summary(evidence, [trial(0, 4.0, target_modules=hostile)], spec)

    assert text.splitlines()[0].startswith(r"# a\|b \<img src=x\> \[x\](http://evil.example) \`c\` \# title")
    assert " <img" not in text
    (row,) = section(text, "The best trials of the search")[2:]
    assert row.replace(r"\|", "").count("|") == 5


def test_without_trials_there_is_no_table_of_trials(evidence: Callable) -> None:
    text = summary(evidence, [])

    assert "No trial finished" in text
    assert "|" not in text


def test_columns_that_say_nothing_are_left_out_and_numbers_stand_right() -> None:
    table = Table(["a", "empty", "b"], [[text_cell("x"), number_cell(None), number_cell(2.0)]])

    assert markdown_table(table) == ["| a | b |", "|---|---:|", "| x | 2 |"]
