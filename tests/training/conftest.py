"""One small base and its data on disk for all tests of the package."""

from __future__ import annotations

import pytest
from workshop import Bench, write_texts


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
