"""A small study, and a database of its own for each test."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from lora_lab.search.connection import connect
from lora_lab.search.urls import sqlite_url
from lora_lab.study.spec import StudySpec

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PARAMETERS: dict[str, Any] = {
    "r": {"values": [2, 4, 8, 64]},
    "target_modules": {"values": ["attention", ["q_proj", "v_proj"]]},
    "use_rslora": {"values": [True, False]},
    "init_lora_weights": {"values": ["gaussian"]},
    "warmup_steps": {"min": 1, "max": 9, "step": 2},
    "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
    "lora_dropout": {"values": [0.0, 0.05], "when": {"r": {"min": 8}}},
}


def make_spec(**sweep: Any) -> StudySpec:
    chosen = {"sampler": "random", "pruner": "none", "n_trials": 6, "parameters": PARAMETERS, **sweep}
    return StudySpec.model_validate(
        {
            "study_name": "study",
            "storage": chosen.pop("storage", None),
            "model": {"model_name_or_path": "builtin/tiny-llama"},
            "data": {"train": "builtin/stdlib-code"},
            "training": {"num_train_epochs": 3, "lr_scheduler_type": "constant_with_warmup"},
            "sweep": chosen,
        }
    )


@pytest.fixture
def spec_of() -> Callable[..., StudySpec]:
    return make_spec


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with Optuna's tables and no study: making them takes as long as most of what is tested here."""
    file = tmp_path_factory.mktemp("tables") / "study.db"
    connect(sqlite_url(file))[1].dispose()
    return file


@pytest.fixture
def url(tmp_path: Path, tables: Path) -> str:
    file = tmp_path / "runs" / "study.db"
    file.parent.mkdir()
    shutil.copy(tables, file)
    return sqlite_url(file)
