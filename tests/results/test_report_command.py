"""`python -m lora_lab.report` on studies whose storage is all that is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from finished_study import BASE_LOSS, finished_study
from safetensors.numpy import save_file
from typer.testing import CliRunner

from lora_lab.__main__ import app
from lora_lab.results.folder import RunFolder
from lora_lab.results.gather import gather
from lora_lab.results.results import read_results
from lora_lab.results.storage import storage_url
from lora_lab.search.store import open_store
from lora_lab.study.file.loading import load_study


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def report(*arguments: object) -> tuple[int, list[str], str]:
    outcome = CliRunner().invoke(app, ["report", *map(str, arguments)])
    return outcome.exit_code, outcome.stdout.splitlines(), outcome.stderr


def test_everything_is_built_from_the_storage_alone():
    code, paths, _ = report(finished_study("alone"))
    run = Path("runs/alone")

    assert (code, paths) == (0, ["runs/alone/report.html"])
    assert {path.name for path in (run / "figures").iterdir()} == {
        "loss-by-rank.png",
        "rank-and-ratio.png",
        "front-trainable-params.png",
    }
    assert "What the verdict rests on" in (run / "summary.md").read_text()
    assert "python -m lora_lab.sweep alone.yaml" in (run / "report.html").read_text()
    assert (run / "best" / "config.yaml").is_file()


def test_the_report_shows_the_digest_of_the_study_that_it_describes():
    path = finished_study("hashed")
    digests = []
    for override in ("sweep.verdict.margin=0.02", "sweep.verdict.margin=0.03"):
        assert report(path, "--set", override)[0] == 0
        digests.append(load_study(path, [override]).digest)
        assert digests[-1] in Path("runs/hashed/report.html").read_text()
    assert digests[0] != digests[1]


def test_several_studies_are_compared_beside_their_own_reports():
    code, paths, _ = report(finished_study("one"), finished_study("two"))

    assert code == 0
    assert paths == ["runs/one/report.html", "runs/two/report.html", "runs/comparison-one-two.html"]
    assert all(Path(path).is_file() for path in paths)


@pytest.mark.slow
def test_the_file_of_a_long_comparison_has_a_short_name():
    names = [f"{letter * 90}" for letter in "ab"]
    code, paths, _ = report(*(finished_study(name) for name in names))

    assert code == 0
    assert len(Path(paths[-1]).name) < 200


def test_a_study_that_has_not_begun_is_one_line_with_a_way_out():
    path = finished_study("begun")
    code, paths, said = report(path, "--set", "study_name=other")

    assert (code, paths) == (1, [])
    assert "run `python -m lora_lab.sweep`" in said
    assert len(said.splitlines()) == 1


def test_a_report_of_a_study_without_trials_is_a_report():
    path = finished_study("empty")
    spec = load_study(path, ["study_name=nothing"])
    with open_store(spec, storage_url(spec, RunFolder.of("nothing"))) as store:
        store.record.keep_base_values({"eval_loss": BASE_LOSS})

    assert report(path, "--set", "study_name=nothing")[:2] == (0, ["runs/nothing/report.html"])
    assert "No trial finished" in Path("runs/nothing/summary.md").read_text()


def test_the_rank_curve_is_tested_over_examples_where_the_verdict_is():
    """Smaller ranks are better on half of the texts and worse on the others: seeds alone would call them equal."""
    path = finished_study("examples")
    spec, folder = load_study(path, []), RunFolder.of("examples")
    tokens = np.full(40, 10)
    with open_store(spec, storage_url(spec, folder), create=False) as store:
        for trial in store.results():
            taste = np.tile([1.0, -1.0], 20) / trial.config.lora.r
            losses = folder.trial(trial.number) / "evaluations" / "eval-0001.safetensors"
            losses.parent.mkdir(parents=True)
            save_file({"nll": tokens * (trial.metrics["eval_loss"] + taste), "label_tokens": tokens}, losses)
        results = read_results(spec, store, folder)

    [curve] = gather(results, folder, "").rank_curves

    rows = {row.standing.number: row for row in results.findings.rows}
    assert {row.evidence for row in rows.values()} == {None, "seeds and examples"}
    assert len(results.losses) == len(results.trials)
    for point in curve.points:
        assert (point.decision, point.p) == (rows[point.number].decision, rows[point.number].corrected_p)
