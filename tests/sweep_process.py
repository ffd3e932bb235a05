"""Commands of lora_lab in processes of their own, which can be killed and have real exit codes.

They are forked from a server that imported torch, transformers and MLflow once: a process then starts in tens of
milliseconds instead of ten seconds, and is otherwise as one that `python -m lora_lab.sweep` began.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from lora_lab.builtin.catalog import model_folder
from lora_lab.builtin.datasets import write_dataset
from lora_lab.search.store import open_store
from lora_lab.study.file.loading import load_study
from lora_lab.tracking.mirror import QUIET

if TYPE_CHECKING:
    import signal
    from pathlib import Path

    from lora_lab.study.results import TrialResult
    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec

PRELOADED = [
    "lora_lab.runner.in_process",
    "lora_lab.runner.coordinator",
    "lora_lab.runner.session",
    "lora_lab.figures.report",
    "lora_lab.figures.stills",
    "lora_lab.results.gather",
    "lora_lab.results.writing",
    "lora_lab.terminal.closing",
    "lora_lab.tracking.store",
    "transformers.models.llama.modeling_llama",
    "datasets",
    "matplotlib.backends.backend_agg",
    "mlflow.store.tracking.sqlalchemy_store",
    "plotly.graph_objects",
    "scipy.special",
]

for name, value in QUIET.items():
    os.environ.setdefault(name, value)

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def _run(verb: str, words: list[str], folder: Path, environment: dict[str, str], out: Path, err: Path) -> None:
    """The child: become the command."""
    os.chdir(folder)
    os.environ.update(environment)
    for path, stream in ((out, sys.stdout), (err, sys.stderr)):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, stream.fileno())
    sys.argv = [verb, *words]
    from lora_lab.command_line import run_command

    run_command(getattr(import_module(f"lora_lab.{verb}"), verb))


@dataclass(frozen=True)
class Ended:
    """How a command ended; `code` is negative for a signal that it did not handle."""

    code: int
    out: str
    err: str


class Command:
    """A command in work."""

    count = 0

    def __init__(self, verb: str, *words: str, folder: Path, environment: dict[str, str]) -> None:
        Command.count += 1
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        self.out, self.err = (logs / f"{Command.count}.{name}" for name in ("out", "err"))
        self.process = _context.Process(
            target=_run, args=(verb, list(words), folder, environment, self.out, self.err), daemon=True
        )
        self.process.start()

    def signal(self, number: signal.Signals) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, number)

    def wait_for(self, text: str, timeout_s: float = 60.0) -> None:
        """Until the command printed `text` on stdout."""
        deadline = time.monotonic() + timeout_s
        while not self.out.exists() or text not in self.out.read_text():
            assert self.process.is_alive(), f"it ended without printing {text!r}: {self.end()}"
            assert time.monotonic() < deadline, f"{text!r} was not printed: {self.out.read_text()}"
            time.sleep(0.02)

    def end(self, timeout_s: float = 120.0) -> Ended:
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, f"still running after {timeout_s} s"
        texts = [path.read_text() if path.exists() else "" for path in (self.out, self.err)]
        return Ended(self.process.exitcode, *texts)


TRAIN = {"path": "data/train.jsonl", "max_examples": 16}
EVAL = {"path": "data/validation.jsonl", "max_examples": 8}
"""As `builtin/stdlib-code`, without the second that it takes to write that."""
BASE = "base"
"""The first layer of the built-in base, in the lab's folder: what a sweep does for a layer it does four times there."""
PARAMETERS = {
    "r": {"values": [2, 4, 8]},
    "alpha_ratio": {"values": [0.5, 1, 2]},
    "learning_rate": {"min": 3e-4, "max": 1e-2, "log": True},
}


def study(name: str = "tiny", **sections) -> dict:
    """A study of a second or two; the keys of `sections` take the place of its own, section by section."""
    base = {
        "study_name": name,
        "model": {"model_name_or_path": BASE},
        "data": {"train": TRAIN, "eval": EVAL, "max_length": 48},
        "training": {"per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 5e-3},
        "lora": {"target_modules": "attention"},
        "sweep": {"sampler": "tpe", "pruner": "asha", "n_trials": 6, "pack_size": 3, "parameters": PARAMETERS},
    }
    for section, values in sections.items():
        base[section] = {**base.get(section, {}), **values} if isinstance(values, dict) else values
    return base


class Lab:
    """A working folder with a study file, in which commands run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, content: dict) -> None:
        (self.folder / "study.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def start(self, *words: str, verb: str = "sweep", **environment: str) -> Command:
        values = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return Command(verb, "study.yaml", *words, folder=self.folder, environment=values | environment)

    def sweep(self, *words: str, **environment: str) -> Ended:
        return self.start(*words, **environment).end()

    def report(self, *words: str) -> Ended:
        return self.start(*words, verb="report").end()

    def found_from_here(self, config: TrialConfig) -> TrialConfig:
        """A trial's configuration with the places of its base and data, which are relative to the lab's folder."""
        model = config.model
        if model.model_name_or_path == BASE:
            model = model.model_copy(update={"model_name_or_path": str(self.folder / BASE)})
        data = {
            part: getattr(config.data, part).model_copy(update={"path": str(self.folder / file["path"])})
            for part, file in (("train", TRAIN), ("eval", EVAL))
        }
        return config.model_copy(update={"model": model, "data": config.data.model_copy(update=data)})

    def run_folder(self, name: str = "tiny") -> Path:
        return self.folder / "runs" / name

    def spec(self, name: str = "tiny") -> StudySpec:
        return load_study(self.folder / "study.yaml", [f"study_name={name}"])

    def results(self, name: str = "tiny") -> dict[int, TrialResult]:
        """All trials of a study by number, read from its storage."""
        spec = self.spec(name)
        url = spec.storage or f"sqlite:///{self.run_folder(name) / 'study.db'}"
        with open_store(spec, url, create=False) as store:
            return {result.number: result for result in store.results()}

    def children(self, name: str = "tiny", database: str = "mlflow.db") -> tuple[Any, list[Any]]:
        """A study in MLflow: its parent run, and the runs of its trials."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder / database}")
        runs = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
        parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        assert len(parents) == 1
        children = [run for run in runs if run not in parents]
        assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parents[0].info.run_id}
        return parents[0], children


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory, migrated_database):
    """What takes seconds and is the same for all: an empty MLflow database, a base, and a dataset."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("prepared")
    shutil.copy(migrated_database, folder / "mlflow.db")
    write_dataset("builtin/stdlib-code", folder / "data")
    whole = model_folder("builtin/tiny-llama")
    AutoModelForCausalLM.from_pretrained(whole, num_hidden_layers=1, dtype="auto").save_pretrained(folder / BASE)
    AutoTokenizer.from_pretrained(whole).save_pretrained(folder / BASE)
    return folder


@pytest.fixture
def lab(prepared_folder, tmp_path):
    shutil.copytree(prepared_folder, tmp_path, dirs_exist_ok=True)
    return Lab(tmp_path)
