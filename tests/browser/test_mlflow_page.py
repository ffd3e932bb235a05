"""MLflow's page of a study as `lora_lab.ui` opens it, in headless Chromium; it makes the pictures of the docs.

`make test-browser` runs it. With PICTURES in the environment the screenshots are kept in that folder.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser

STUDY = {
    "study_name": "page",
    "question": "Which rank?",
    "model": {"model_name_or_path": "builtin/tiny-llama"},
    "data": {
        "train": "builtin/stdlib-code",
        "max_train_examples": 48,
        "eval": {"path": "builtin/stdlib-code", "split": "validation", "max_examples": 16},
        "max_length": 64,
    },
    "training": {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 2e-3},
    "sweep": {
        "sampler": "grid",
        "pruner": "none",
        "parameters": {"r": {"values": [2, 8, 32]}, "target_modules": {"values": ["attention", "all-linear"]}},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the study ran; JSON is YAML too."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "study.yaml").write_text(json.dumps(STUDY))
    subprocess.run(
        [sys.executable, "-m", "lora_lab.sweep", "study.yaml", "--quiet"], cwd=folder, check=True, timeout=240
    )
    return folder


@pytest.fixture(scope="module")
def pages(folder):
    """The addresses that `lora_lab.ui` prints, while it serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "lora_lab.ui", "study.yaml", "--port", str(port)]
    with (folder / "ui.txt").open("w") as log, subprocess.Popen(words, cwd=folder, stdout=log, stderr=log) as process:
        try:
            yield _addresses(folder / "ui.txt", process)
        finally:
            process.terminate()


def _addresses(log: Path, process: subprocess.Popen) -> dict[str, str]:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        found = dict(re.findall(r"^(trials|charts)\s+(http\S+)$", log.read_text(), re.MULTILINE))
        if len(found) == 2:
            try:
                with urllib.request.urlopen(found["trials"].partition("#")[0], timeout=2):
                    return found
            except OSError:
                pass
        time.sleep(0.3)
    raise AssertionError(log.read_text())


def opened(page, address: str) -> None:
    """Open MLflow without its assistant, which takes a third of the page."""
    page.goto(address)
    page.get_by_text("trial-0000", exact=False).first.wait_for()
    page.get_by_role("button", name="Close", exact=True).click()


def keep_picture(page, name: str) -> None:
    """A screenshot for the docs, where it is asked for."""
    if os.environ.get("PICTURES"):
        page.screenshot(path=Path(os.environ["PICTURES"]) / f"{name}.png")


def losses_on(page) -> list[float]:
    """The eval_loss of the rows of the table, from the top."""
    cells = page.locator('[col-id="metrics.`eval_loss`"][role="gridcell"]')
    cells.first.wait_for()
    rows = sorted((box["y"], cell.inner_text()) for cell in cells.all() if (box := cell.bounding_box()))
    return [float(text) for _, text in rows if text.strip() not in ("", "-")]


def test_the_table_of_trials(pages, page):
    opened(page, pages["trials"])
    for number in range(6):
        assert page.get_by_text(f"trial-{number:04d}", exact=False).count(), f"trial {number} is not shown"
    header = page.locator('[role="columnheader"]').all_inner_texts()
    for column in ("eval_loss", "trainable_params", "r", "target_modules"):
        assert any(column in text for text in header), f"{column} is not among {header}"
    losses = losses_on(page)
    assert len(losses) == 6
    assert losses == sorted(losses)
    keep_picture(page, "mlflow_trials")
    page.locator('[role="columnheader"]', has_text="eval_loss").first.click()
    first = 'document.querySelector(\'[role=row][row-index="0"] [col-id="metrics.`eval_loss`"]\')'
    page.wait_for_function(f"least => {first} && Number({first}.innerText) > least", arg=losses[0])
    assert losses_on(page) == sorted(losses, reverse=True)


def test_the_charts_of_trade_offs(pages, page):
    opened(page, pages["charts"])
    page.get_by_text("Trade-offs").first.wait_for()
    for axis in ("trainable_params", "peak_memory_bytes", "train_seconds"):
        page.locator("text.xtitle", has_text=axis).wait_for()
    page.wait_for_function("document.querySelectorAll('.scatterlayer .point').length >= 3 * 6")
    assert page.get_by_text("target_modules").count(), "the parallel coordinates have what was searched"
    keep_picture(page, "mlflow_charts")


def test_a_trial_with_its_curve_and_the_winner_with_its_adapter(folder, pages, page):
    opened(page, pages["trials"])
    chosen = json.loads(_show(folder))["verdict"]["recommended"]
    page.get_by_text(f"trial-{chosen:04d}", exact=False).first.click()
    page.get_by_placeholder("Search parameters").fill("lora_alpha")
    page.get_by_text("lora_alpha", exact=True).wait_for()
    page.get_by_role("tab", name="Model metrics").first.click()
    page.get_by_text("eval_loss").first.wait_for()
    page.get_by_role("tab", name="Artifacts").first.click()
    page.get_by_text("adapter", exact=True).first.wait_for()


def _show(folder: Path) -> str:
    words = [sys.executable, "-m", "lora_lab.show", "study.yaml", "--json"]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True, timeout=120).stdout
