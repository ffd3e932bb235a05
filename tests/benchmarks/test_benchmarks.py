"""The benchmarks run end to end in miniature, and their results become the tables of docs/performance.md."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def summarize(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import summarize

    return summarize


def run(script, output, *options):
    command = [sys.executable, str(BENCHMARKS / script), *options, "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=output.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


@pytest.mark.slow
def test_equal_work_runs_in_miniature(tmp_path, summarize):
    options = ("--tokens", "64", "128", "--packs", "1", "8", "--repeats", "1", "--steps", "1", "--clock", "cpu")
    result = run("equal_work.py", tmp_path / "equal_work.json", *options)
    assert [cell["tokens_per_trial_step"] for cell in result["cells"]] == [64, 128]
    for cell in result["cells"]:
        for clock in ("whole", "steps"):
            assert cell["speedup"][clock].keys() == {"1", "8"}
            sequential, packed = (cell["ms_per_trial_step"][clock][name][0] for name in ("sequential", "8"))
            assert cell["speedup"][clock]["8"] == pytest.approx(sequential / packed, rel=0.01)
        for name in ("sequential", "1", "8"):
            assert cell["ms_per_trial_step"]["whole"][name] > cell["ms_per_trial_step"]["steps"][name]
    text = summarize.equal_work(result)
    assert "| 64 | " in text
    assert "Best cell: " in text
    assert summarize.curves(result).count("<polyline") == 2


@pytest.mark.slow
def test_processes_and_a_pack_are_compared(tmp_path, summarize):
    result = run("processes.py", tmp_path / "processes.json", "--tokens", "64", "--trials", "2", "--steps", "1")
    [cell] = result["cells"]
    assert len(cell["processes"]) == 2
    assert 0 < cell["packed"]["train_s"] < cell["packed"]["wall_s"]
    assert cell["packed"]["peak_rss_bytes"] > 2**27
    assert all(step["base"] < step["peak"] for step in cell["counted_step_bytes"])
    assert "\n| 64 | " in summarize.processes(result)


@pytest.mark.slow
def test_a_pack_and_single_adapters_answer_the_same(tmp_path):
    options = ("--prompts", "6", "--rows", "4", "--new-tokens", "4", "--repeats", "1", "--clock", "cpu")
    result = run("generation.py", tmp_path / "generation.json", *options)
    [cell] = result["cells"]
    assert cell["equal_answers"] == 1.0
    packed, alone = (cell["seconds"][name][0] for name in ("packed", "alone"))
    assert cell["speedup"] == pytest.approx(alone / packed, rel=0.01)


def test_the_page_has_a_place_for_every_result():
    page = (ROOT / "docs" / "performance.md").read_text()
    for name in ("equal_work", "processes", "whole_study"):
        assert page.index(f"<!-- {name} -->") < page.index(f"<!-- /{name} -->")
