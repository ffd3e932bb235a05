from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from analysis.simulated import results, study, trial
from figures.conftest import read_page

from lora_lab.figures.studies import choices_table, comparison_panels, differences, same_base, write_comparison
from lora_lab.study.spec import StudySpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.figures.evidence import Evidence


def named(name: str, **changes: object) -> StudySpec:
    return StudySpec.model_validate({**study().model_dump(), "study_name": name, **changes})


def pair(evidence: Callable, **changes: object) -> list[Evidence]:
    return [evidence(results(), named("one")), evidence(results(24, seed=5), named("two", **changes))]


def test_verdicts_and_choices_stand_side_by_side_and_the_reports_are_linked(evidence: Callable, tmp_path: Path) -> None:
    write_comparison(tmp_path / "comparison.html", pair(evidence))
    page = read_page(tmp_path / "comparison.html")

    assert [value for _, name, value in page.attributes if name == "href"] == ["one/report.html", "two/report.html"]
    assert page.words.count("Best: trial") == 2
    assert "Same base, same text, same length." in page.words
    assert page.plots == ["fronts-trainable-params", "fronts-peak-memory-bytes", "fronts-train-seconds"]
    assert len(page.scripts) == 2


def test_the_chosen_configurations_have_intervals_where_there_are_replicates(evidence: Callable) -> None:
    table = choices_table([*pair(evidence), evidence([trial(0, 4.0)], named("three")), evidence([], named("four"))])
    rows = [[cell.text for cell in row] for row in table.rows]

    assert [row[0] for row in rows] == ["one", "one", "two", "two", "three", "three", "four"]
    assert " to " in rows[0][6]
    assert rows[4][5:7] == ["1", ""]
    assert rows[6][1] == "nothing finished"
    assert len({len(row) for row in rows}) == 1


def test_fronts_are_overlaid_in_one_figure_per_cost(evidence: Callable) -> None:
    panel = comparison_panels(pair(evidence))[0]
    lines = [trace for trace in panel.figure.data if trace.mode == "lines+markers"]

    assert [line.name for line in lines] == ["one", "two"]
    assert all(list(line.x) == sorted(line.x) for line in lines)
    assert all(list(line.y) == sorted(line.y, reverse=True) for line in lines)
    assert len({line.line.color for line in lines}) == 2


def test_studies_on_other_bases_are_compared_by_their_gain(evidence: Callable, tmp_path: Path) -> None:
    studies = [evidence(results(), named("one")), evidence(results(), named("two"), base_loss=6.0)]
    write_comparison(tmp_path / "comparison.html", studies)
    (line, _) = [t for t in comparison_panels(studies)[0].figure.data if t.mode == "lines+markers"]

    assert not same_base(studies)
    assert "the values themselves are not comparable" in read_page(tmp_path / "comparison.html").words
    assert list(line.y) == sorted(line.y)


def test_differences_are_named(evidence: Callable) -> None:
    data = study().data.model_copy(update={"max_length": 256})
    studies = [evidence([], named("one")), evidence([], named("two", data=data.model_dump()))]

    assert differences(studies) == ["max_length differs: one 128; two 256."]
    assert differences(studies[:1] * 2) == []


def test_hostile_questions_are_text(evidence: Callable, tmp_path: Path) -> None:
    hostile = "</script><script>alert(1)</script>"
    studies = [replace(one, spec=named(one.spec.study_name, question=hostile)) for one in pair(evidence)]
    write_comparison(tmp_path / "comparison.html", studies)
    page = read_page(tmp_path / "comparison.html")

    assert len(page.scripts) == 2
    assert page.words.count(hostile) == 2
