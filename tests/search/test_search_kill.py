"""A study killed before any one of its writes goes on as if nothing had happened."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from lora_lab.common.errors import StorageError
from lora_lab.search.store import open_store
from lora_lab.search.urls import sqlite_url

if TYPE_CHECKING:
    from lora_lab.study.results import TrialResult

SCRIPT = Path(__file__).with_name("killed_study.py")
ENDS = [("complete", 0), ("pruned", 0), ("diverged", 0), ("shared", 0), ("complete", 1)]


def scripted() -> object:
    specification = importlib.util.spec_from_file_location("killed_study", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def stored(spec: object, url: str) -> list[TrialResult]:
    """What a report would show of the study; nothing where it was killed before it began."""
    try:
        with open_store(spec, url, create=False) as store:
            return store.results()
    except StorageError:
        return []


@pytest.mark.parametrize("stride", [14, pytest.param(1, marks=pytest.mark.faults)])
def test_a_study_killed_before_any_write_ends_as_an_undisturbed_one(tmp_path: Path, stride: int) -> None:
    study = scripted()
    subprocess.run([sys.executable, SCRIPT, tmp_path, str(stride), "plain"], check=True, timeout=200)
    files = sorted(tmp_path.glob("*.db"), key=lambda file: int(file.stem))
    assert len(files) > 30 // stride
    undisturbed = stored(study.SPEC, sqlite_url(files[-1]))
    assert [(result.state, result.replicate) for result in undisturbed] == ENDS
    for file in files[:-1]:
        before = stored(study.SPEC, sqlite_url(file))
        with open_store(study.SPEC, sqlite_url(file)) as store:
            study.go_on(store)
            after = store.results()
            assert store.running() == [], file.name
            assert store.budget() == (4, 4), file.name
            assert store.record.stored_spec() == study.SPEC
        assert {result.engine for result in after} == {study.ENGINE}, file.name
        for kept in before:
            assert (after[kept.number].params, after[kept.number].config) == (kept.params, kept.config)
            if kept.state != "running":
                assert after[kept.number] == kept, file.name
        # A trial whose draws were cut short between two parameters goes on with other ones.
        assert [without_choices(result) for result in after] == [without_choices(one) for one in undisturbed]
        assert sum(a.params != b.params for a, b in zip(after, undisturbed, strict=True)) <= 2, file.name


@pytest.mark.parametrize("stride", [pytest.param(7, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.faults)])
def test_what_a_training_gives_to_others_is_there_once_after_any_kill(tmp_path: Path, stride: int) -> None:
    study = scripted()
    subprocess.run([sys.executable, SCRIPT, tmp_path, str(stride), "trajectories"], check=True, timeout=200)
    files = sorted(tmp_path.glob("*.db"), key=lambda file: int(file.stem))
    assert len(files) > 30 // stride
    spec = study.TRAJECTORIES
    assert {"complete", "shared"} == {one.state for one in stored(spec, sqlite_url(files[-1]))}
    for file in files[:-1]:
        before = stored(spec, sqlite_url(file))
        with open_store(spec, sqlite_url(file)) as store:
            study.go_on_with_trajectories(store)
            after = store.results()
            assert store.budget() == (6, 6), file.name
        for kept in before:
            if kept.state != "running":
                assert after[kept.number] == kept, file.name
        for one in after:
            epochs = one.config.training.num_train_epochs
            assert one.metrics == {"eval_loss": -epochs}, file.name
            assert one.curve == {epoch: -epoch for epoch in range(1, epochs + 1)}, file.name
            assert (one.source is not None) == (one.state == "shared")
        assert len({tuple(one.params.items()) for one in after}) == 6, file.name


def without_choices(result: TrialResult) -> tuple[object, ...]:
    return (
        result.number, result.state, result.metrics, result.curve, result.source, result.reason,
        result.replicate, result.confirms, result.config.training.seed,
    )  # fmt: skip
