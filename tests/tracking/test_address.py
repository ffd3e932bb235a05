from __future__ import annotations

import pytest

from lora_lab.common.errors import InputError
from lora_lab.tracking.address import resolve_tracking_uri, shown_uri, ui_command


def test_the_default_store_lies_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolve_tracking_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_tracking_uri() == "http://server:5000"
    assert resolve_tracking_uri("sqlite:////srv/mlflow.db") == "sqlite:////srv/mlflow.db"


def test_a_shown_address_has_no_secrets():
    assert shown_uri("postgresql://me:pw@host/db?sslpassword=x") == "postgresql://***@host/db"


def test_the_browser_command_binds_to_this_machine_only():
    command = ui_command("sqlite:////srv/mlflow.db", port=5055)
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--backend-store-uri") + 1] == "sqlite:////srv/mlflow.db"
    assert command[command.index("--port") + 1] == "5055"


def test_a_server_has_its_own_pages():
    with pytest.raises(InputError, match="open it in a browser"):
        ui_command("https://me:pw@mlflow.example.org")
