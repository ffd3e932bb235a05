"""What all tests share: no hub access, and small models and data made on the spot."""

from __future__ import annotations

import os

import pytest

from lora_lab.study.measures import MEASURES, Measure

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Small models: a second thread gains little, and costs fourfold when another process wants the core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> Measure:
    """A score between 0 and 1 that every evaluation has, in the table of measures for one test."""
    measure = Measure(
        name="accuracy",
        label="accuracy",
        header="accuracy",
        kind="score",
        style="score",
        distance_unit="points",
        low=0.0,
        high=1.0,
        noisy=True,
        gain=True,
        curve=True,
    )
    monkeypatch.setitem(MEASURES, measure.name, measure)
    return measure
