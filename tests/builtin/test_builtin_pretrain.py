"""The script that made the base: its schedule, its windows, and a run of two steps."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import torch
from transformers import AutoTokenizer

from lora_lab.builtin import pretrain, pretraining_text
from lora_lab.builtin.standard_library import PROSE_VALIDATION_FILES

if TYPE_CHECKING:
    from pathlib import Path


def test_schedule_warms_up_stays_and_decays() -> None:
    rates = [pretrain.learning_rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(3e-5)
    assert rates[100] == rates[599] == 3e-3
    assert rates[800] == pytest.approx(1.5e-3)
    assert rates[-1] == pytest.approx(6e-5)
    assert rates[600:] == sorted(rates[600:], reverse=True)


def test_windows_are_deterministic_and_cover_the_text() -> None:
    documents = [[index] * 100 for index in range(64)]
    first = pretrain.training_windows([*documents], 75)
    again = pretrain.training_windows([*documents], 75)
    assert torch.equal(first, again)
    assert first.shape == (75, 128)
    assert set(first[:50].flatten().tolist()) == set(range(64))
    assert not torch.equal(first[:25], first[50:])


@pytest.mark.slow
def test_a_short_run_writes_everything_the_model_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pretraining_text, "pretraining_prose", pretraining_text.validation_prose)
    monkeypatch.setattr(pretrain, "BIOGRAPHIES", 300)
    monkeypatch.setattr(pretrain, "VALIDATION_WINDOWS", 16)
    pretrain.pretrain(tmp_path, steps=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "pretraining.json", "README.md"} <= names
    report = json.loads((tmp_path / "pretraining.json").read_text(encoding="utf-8"))
    assert report["steps"] == 2
    assert set(report["cross_entropy_nats"]) == {"prose", "biographies", "code"}
    assert AutoTokenizer.from_pretrained(tmp_path)("plain text")["input_ids"][0] > pretrain.EOS


def test_validation_prose_is_not_in_the_training_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    # The held-out files, two that repeat paragraphs of them, and one more; the whole library takes seconds.
    files = [*PROSE_VALIDATION_FILES, "_threading_local.py", "asyncio/subprocess.py", "shelve.py"]
    monkeypatch.setattr(pretraining_text, "_library_files", lambda: files)
    held_out = {part for passage in pretraining_text.validation_prose() for part in passage.split("\n\n")}
    trained_on = {part for passage in pretraining_text.pretraining_prose() for part in passage.split("\n\n")}
    assert 'A "shelf" is a persistent, dictionary-like object.' in " ".join(trained_on)
    assert held_out
    assert held_out.isdisjoint(trained_on)


def test_pretraining_reads_neither_tables_nor_tests() -> None:
    files = pretraining_text._library_files()
    assert {"argparse.py", "json/decoder.py"} <= set(files)
    assert not [path for path in files if path.startswith(("encodings/", "test/", "site-packages/"))]
