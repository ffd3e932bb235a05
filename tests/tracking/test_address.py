from __future__ import annotations

import pytest

from lora_lab.common.errors import InputError
from lora_lab.tracking.address import resolve_tracking_uri, shown_uri, ui_command, ui_environment, ui_words

COMMAND = "python -m lora_lab.ui study.yaml"


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


def test_the_pages_are_served_on_this_machine_only_and_the_store_is_not_on_the_command_line():
    address = "postgresql://me:canary@host/db"
    command = ui_command(port=5055)
    assert command[1:4] == ["-m", "mlflow", "ui"]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5055"
    assert ui_environment(address) == {"MLFLOW_BACKEND_STORE_URI": address}


def test_the_words_can_be_pasted_where_there_is_no_secret_in_them():
    address = "sqlite:////srv/ml flow.db"
    assert ui_words(address, COMMAND) == f"{COMMAND}   then open the pages that it names"
    assert ui_words(address, COMMAND, given=True).startswith(f"{COMMAND} --tracking-uri 'sqlite:////srv/ml flow.db'")
    assert ui_words("https://me:canary@mlflow.example.org", COMMAND) == "https://***@mlflow.example.org"


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("password", ["canary", "canary@x", "x/canary", "my canary", "?canary#"])
def test_the_words_hold_no_password(password, given):
    words = ui_words(f"postgresql://me:{password}@host/db?sslpassword=canary", COMMAND, given=given)
    assert words.startswith("postgresql://***@host/db: set MLFLOW_TRACKING_URI")
    assert "canary" not in words


def test_a_server_has_its_own_pages():
    with pytest.raises(InputError, match="open it in a browser"):
        ui_environment("https://me:pw@mlflow.example.org")
