from __future__ import annotations

import html
import math
import re
from typing import TYPE_CHECKING

import pytest
from analysis.simulated import BASE_LOSS, results, study, trial

from lora_lab.analysis.verdict import decide
from lora_lab.common.errors import StorageError
from lora_lab.figures.evidence import Evidence, Reproduction
from lora_lab.figures.report import write_report
from lora_lab.study.spec import StudySpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from figures.conftest import Page

ALL_PLOTS = [
    "loss-by-rank",
    "adequate-rank",
    "rank-and-ratio",
    "scale-response",
    "target-modules-at-equal-rank",
    "target-modules-at-equal-budget",
    "layers-at-equal-rank",
    "layers-at-equal-budget",
    "front-trainable-params",
    "front-peak-memory-bytes",
    "front-train-seconds",
    "epochs",
    "learning-curves",
    "forgetting-by-gain",
    "memory-by-rank",
    "memory-terms",
    "importance",
    "parallel-coordinates",
]
HOSTILE = "</script><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>"


def test_the_question_and_the_verdict_stand_before_the_figures(page: Page) -> None:
    places = [
        page.source.index(words)
        for words in ("How do rank and alpha", "Best: trial", 'id="evidence"', 'id="care"', 'about-loss-by-rank"><h2')
    ]
    assert places == sorted(places)
    assert "python -m lora_lab.sweep studies/rank_alpha.yaml" in page.words
    assert study().digest in page.words


def test_every_figure_of_a_whole_study_is_drawn(page: Page) -> None:
    assert page.plots == ALL_PLOTS
    assert len(page.data) == len(ALL_PLOTS)
    assert all(drawn["data"] for drawn in page.data)


def test_every_link_leads_to_a_section(page: Page) -> None:
    links = [value.removeprefix("#") for _, name, value in page.attributes if name == "href"]
    assert len(links) > len(ALL_PLOTS)
    assert set(links) <= page.ids


def numbers(source: str) -> set[str]:
    words = html.unescape(re.sub(r"<[^>]*>|confirm:[^}]*}", " ", source))
    return {number.rstrip(".") for number in re.findall(r"(?<![\w.])\d[\d.]*(?:e-\d+)?[kMB%]?", words)}


def test_every_number_of_the_verdict_is_in_its_tables(report: Callable) -> None:
    for trials in (results(), results(count=20, seed=5)):
        page = report(trials)
        verdict = page.source.split("<h2>Verdict</h2>")[1].split('<div class="cards">')[0]
        tables = page.source.split('id="evidence"')[1].split("</section>")[0]
        assert len(numbers(verdict)) > 10
        assert numbers(verdict) - numbers(tables) == set()


def test_the_page_asks_the_network_for_nothing(page: Page) -> None:
    outside = [(tag, name, value) for tag, name, value in page.attributes if "//" in value]
    assert outside == []
    assert not {"link", "img", "iframe", "object", "embed"} & set(page.tags)
    assert {name for _, name, _ in page.attributes} & {"src", "srcset", "onclick"} == set()
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert page.policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in page.policy
    assert "http" not in page.policy


def test_only_the_two_own_scripts_may_run(page: Page) -> None:
    assert len(page.scripts) == 2
    assert "plotly.js" in page.scripts[0][:100]
    assert re.findall(r"'sha256-([^']+)'", page.policy) == [page.hash_of(script) for script in page.scripts]


def test_hostile_text_is_text(report: Callable) -> None:
    spec = StudySpec.model_validate({**study().model_dump(), "question": HOSTILE})
    trials = [
        trial(0, 4.0, target_modules=HOSTILE, learning_rate=1e-3),
        trial(1, 4.1, r=64, target_modules="mlp", learning_rate=2e-3),
        trial(2, state="failed", reason=HOSTILE, target_modules=(HOSTILE, "x")),
    ]
    page = report(
        trials,
        spec,
        reproduction=Reproduction(command=HOSTILE, study_hash=HOSTILE, versions={HOSTILE: HOSTILE}),
    )

    assert len(page.scripts) == 2
    assert "img" not in page.tags
    assert HOSTILE not in page.source
    assert page.words.count(HOSTILE) >= 4
    assert all("<img" not in str(drawn) for drawn in page.data)


def test_every_trial_in_every_state_is_in_the_table(report: Callable) -> None:
    trials = results()
    page = report(trials)
    table = page.source.split("All 41 trials")[1].split("</table>")[0]
    rows = re.findall(r'<tr[^>]*><td class="n" data-sort="([\d.]+)">', table)

    assert [int(float(number)) for number in rows] == [result.number for result in trials]
    for state in ("complete", "pruned", "diverged", "out of memory", "failed"):
        assert f">{state}</td>" in table
    assert "gradient is not finite at step 23" in table
    assert "retraining of trial" in table


def test_unknown_numbers_sort_as_unknown(report: Callable) -> None:
    page = report([trial(0, 4.0), trial(1, state="diverged"), trial(2, 4.5, metrics={"train_seconds": math.inf})])

    cells = [value for tag, name, value in page.attributes if (tag, name) == ("td", "data-sort")]
    assert "" in cells
    assert "inf" not in cells
    assert "nan" not in cells


@pytest.mark.parametrize(
    "trials",
    [
        [],
        [trial(0, state="diverged", reason="loss is nan")],
        [trial(0, state="running")],
        [trial(0, 4.0, r=8)],
        [trial(0, 6.0, r=8), trial(1, 7.0, r=16)],
        [trial(0, 4.0, state="shared", source=0), trial(1, 4.0)],
    ],
    ids=["none", "one diverged", "one running", "one finished", "nothing helped", "shared"],
)
def test_small_and_failed_studies_have_a_report(report: Callable, trials: list) -> None:
    page = report(trials)

    assert "Verdict" in page.words
    assert "How to reproduce" in page.words
    for title in ("Loss against rank", "Rank and alpha together", "Learning curves", "Everything at once"):
        assert title in page.words


def test_a_study_without_ranks_says_why_a_figure_is_missing(report: Callable) -> None:
    parameters = {"learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}}
    page = report([trial(0, 4.0, learning_rate=1e-3), trial(1, 4.1, learning_rate=2e-3)], study(parameters=parameters))

    assert "All finished trials have r = 16: not drawn." in page.words
    assert "Finished trials have 1 rank and 1 value of alpha / r: not drawn." in page.words
    assert page.plots == ["front-trainable-params", "front-train-seconds", "parallel-coordinates"]


def test_audit_notes_are_shown(report: Callable) -> None:
    parameters = {"r": {"values": [4, 16, 64]}}
    page = report([trial(0, 4.0, r=4), trial(1, 4.1, r=64)], study(parameters=parameters))

    assert "Rank varies at one learning rate" in page.words


def test_the_file_is_replaced_as_a_whole_and_nothing_is_left_beside_it(report: Callable, tmp_path: Path) -> None:
    report(results())
    first = (tmp_path / "report.html").read_bytes()
    report(results())

    assert (tmp_path / "report.html").read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "study"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "report.html"
    evidence = Evidence(
        spec=study(),
        results=[],
        findings=decide([], BASE_LOSS, margin=0.01),
        reproduction=Reproduction(command="lora-lab sweep x", study_hash="0"),
    )

    with pytest.raises(StorageError, match=r"cannot write .*file/report.html: File exists; free space or fix"):
        write_report(path, evidence, [])


def test_a_password_in_the_storage_address_is_not_in_the_report(report: Callable) -> None:
    spec = StudySpec.model_validate(
        {**study().model_dump(), "storage": "postgresql://lab:canary-7f3a@db.example/optuna"}
    )

    assert "canary-7f3a" not in report([trial(0, 4.0)], spec).source
