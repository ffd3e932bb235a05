from __future__ import annotations

import os
import shutil

import pytest

from lora_lab.tracking.mirror import QUIET

for name, value in QUIET.items():
    os.environ.setdefault(name, value)


@pytest.fixture
def database_uri(migrated_database, tmp_path):
    path = tmp_path / "mlflow.db"
    shutil.copy(migrated_database, path)
    return f"sqlite:///{path}"


@pytest.fixture
def client(database_uri):
    from mlflow import MlflowClient

    return MlflowClient(database_uri)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "runs" / "rank_alpha"
