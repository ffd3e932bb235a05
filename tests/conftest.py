"""What all tests share: no hub access, few threads, and `--no-torch` for the tests that need none."""

from __future__ import annotations

import gc
import os
import sys
from importlib.abc import MetaPathFinder

import pytest
from filelock import FileLock

from lora_lab.study.measures import MEASURES, Measure
from lora_lab.tracking.mirror import QUIET

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Small models: a second thread gains little, and costs fourfold when another process wants the core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

FORKING = ("tests/end_to_end/", "tests/faults/")
"""Their commands are forked off a server that has imported everything (`sweep_process`)."""
LONGEST_FIRST = (*FORKING, "tests/training/", "tests/equivalence/", "tests/runner/", "tests/search/")
"""So that at the end of a run on several workers there are many short files to share out."""


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
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST_FIRST))


def pytest_collection_finish():
    """Whoever collects garbage, as `Trainer` does when it starts, need not look at all that is imported."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files go to workers whole; those that fork commands off a server go to one, so that there is one such server."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # it would let the files of the most tests be the first

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "commands" if nodeid.startswith(FORKING) else super()._split_scope(nodeid)

    return ByFile(config, log)


@pytest.fixture(scope="session")
def migrated_database(tmp_path_factory):
    """The file of an empty MLflow database, made once for all workers of a run: its migrations take seconds."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    path, made = folder / "mlflow.db", folder / "mlflow.db.made"
    with FileLock(folder / "mlflow.db.lock"):
        if not path.exists():
            for name, value in QUIET.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient

            MlflowClient(f"sqlite:///{made}").search_experiments()
            made.replace(path)
    return path


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """The folder of a random base of two small layers."""
    from workshop import write_base

    folder = tmp_path_factory.mktemp("tiny-base")
    write_base(folder)
    return folder


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
