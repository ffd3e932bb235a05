"""The one call on a GPU, in miniature on a CPU: all of its code, and what it survives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_once.py"
ITEMS = (
    *("env", "exact64", "exact32", "exact16", "exactq", "study", "studyalone", "predict1b", "predict8b", "memory1b"),
    *("speed8b", "speed8bq", "speed1b", "extras"),
)


def call(output, *options):
    command = [sys.executable, str(SCRIPT), "--toy", "--output", str(output), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=output.parent, env=environment)
    return done, json.loads((output / "gpu.json").read_text())


def failures(found):
    lines = {f"{item}/{name}": line for item, one in found["items"].items() for name, line in one["cells"].items()}
    return {name: line["error"] for name, line in lines.items() if not line["ok"]}


@pytest.mark.slow
def test_a_failure_a_hang_and_a_crash_cost_one_cell_each(tmp_path):
    injected = ("fail:env/versions", "hang:env/launches", "crash:env/adapters")
    done, found = call(tmp_path / "out", "--only", "env", "--inject", *injected)
    assert done.returncode == 1, done.stderr
    assert failures(found) == {
        "env/versions": "RuntimeError: injected",
        "env/launches": "took longer than its limit",
        "env/adapters": "its process ended with -6",
    }
    cells = found["items"]["env"]["cells"]
    assert found["items"]["env"]["not_run"] == []
    assert cells["operators"]["result"]["grouped_mm_error"] < 0.01
    assert cells["ceilings"]["result"]["square_tflops"] > 0
    table = (tmp_path / "out" / "table.txt").read_text()
    assert "8 cells in " in table
    assert "FAILED env/launches: took longer than its limit" in table
    assert "FAILED env/versions: RuntimeError: injected" in done.stdout.partition("--- TROUBLE")[2]


@pytest.mark.slow
def test_cells_are_chosen_by_name_and_calls_are_put_together(tmp_path):
    calls = []
    for name, cells in (("first", "versions|launches"), ("second", "launches|operators")):
        done, found = call(tmp_path / name, "--only", "env", "--cells", cells)
        assert done.returncode == 0, done.stderr
        assert list(found["items"]["env"]["cells"]) == cells.split("|")
        calls.append(found)
    files = [str(tmp_path / name / "gpu.json") for name in ("first", "second")]
    command = [sys.executable, "-m", "gpu_items.merge", str(tmp_path / "both.json"), *files]
    subprocess.run(command, check=True, cwd=SCRIPT.parent)
    both = json.loads((tmp_path / "both.json").read_text())
    assert {name: line["call"] for name, line in both["items"]["env"]["cells"].items()} == {
        "versions": 0,
        "launches": 1,
        "operators": 1,
    }
    assert both["items"]["env"]["not_run"] == []
    assert [one["began"] for one in both["calls"]] == [one["began"] for one in calls]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("item", ITEMS)
def test_every_item_runs_in_miniature(tmp_path, item):
    done, found = call(tmp_path / "out", "--only", item, "--minutes", "25")
    assert failures(found) == {}, done.stdout[-3000:]
    assert done.returncode == 0
    assert found["items"][item]["not_run"] == []
    assert [line for line in found["items"][item]["cells"].values() if line["result"].get("rc")] == []
    assert f"{len(found['items'][item]['cells'])} cells in " in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_runs_beside_the_stages_also_runs_without_them(tmp_path):
    done, found = call(tmp_path / "out", "--parallel", "--only", "predict1b")
    assert failures(found) == {}, done.stdout[-3000:]
    assert len(found["items"]["predict1b"]["cells"]) == 7
    assert found["items"]["predict1b"]["not_run"] == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_packed_equals_trainer_and_blocks_equal_the_loop(tmp_path):
    _, found = call(tmp_path / "out", "--only", "exact64", "--minutes", "14")
    for name, line in found["items"]["exact64"]["cells"].items():
        assert line["result"]["loss"] < 1e-9, name
        assert line["result"].get("adapter", 0.0) < 1e-8, name


def test_carried_packages_are_left_out_of_another_python(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_items import run

    monkeypatch.setattr(run, "SITE", tmp_path)
    own = "{}.{}".format(*sys.version_info)
    (tmp_path / "PYTHON").write_text(f"{own}\n")
    assert run._site() == tmp_path
    assert capsys.readouterr().out == ""
    (tmp_path / "PYTHON").write_text("3.0\n")
    assert run._site() is None
    assert f"it is for Python 3.0, and this is {own}" in capsys.readouterr().out


def test_the_pages_name_the_script():
    for page in ("README.md", "docs/performance.md"):
        text = (ROOT / page).read_text()
        assert "benchmarks/gpu_once.py" in text
        assert not re.search(r"benchmarks/gpu\.py", text)
