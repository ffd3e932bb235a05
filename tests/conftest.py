"""What all tests share: no hub access, few threads, and `--no-torch` for the tests that need none."""

from __future__ import annotations

import gc
import os
import sys
from importlib.abc import MetaPathFinder

import pytest

from lora_lab.study.measures import MEASURES, Measure

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Small models: a second thread gains little, and costs fourfold when another process wants the core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")


class NoTorch(MetaPathFinder):
    """Makes every import of torch fail where it stands, in the tests of what must answer without it."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] == "torch":
            raise ModuleNotFoundError("torch is imported in a run with --no-torch (make test-quick)", name="torch")


def pytest_addoption(parser):
    parser.addoption("--no-torch", action="store_true", help="Let every import of torch fail.")


def pytest_configure(config):
    if config.getoption("--no-torch"):
        assert "torch" not in sys.modules
        sys.meta_path.insert(0, NoTorch())


def pytest_collection_modifyitems(config, items):
    if config.getoption("--no-torch"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("torch")])
        items[:] = [item for item in items if not item.get_closest_marker("torch")]


def pytest_collection_finish():
    """Whoever collects garbage, as `Trainer` does when it starts, need not look at all that is imported."""
    gc.collect()
    gc.freeze()


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
