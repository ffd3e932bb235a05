"""One small base and its data on disk for all tests of the package."""

from __future__ import annotations

import gc

import pytest
from workshop import Bench, write_base, write_texts


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-base")
    write_base(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-data")
    write_texts(folder / "train.jsonl", 24)
    write_texts(folder / "validation.jsonl", 10, seed=1)
    write_texts(folder / "general.jsonl", 7, seed=2)
    return folder


@pytest.fixture
def bench(tiny_base, tiny_data, tmp_path):
    return Bench(tiny_base, tiny_data, tmp_path)


@pytest.fixture(scope="module")
def _little_to_collect():
    """`Trainer` collects garbage when it starts, which takes half a second among all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()
