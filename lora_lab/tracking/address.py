"""Where MLflow is: which store is meant, how to show its address, and how to browse it."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from lora_lab.common.errors import InputError
from lora_lab.common.secrets import redact_address

SQLITE = "sqlite:///"
DEFAULT_DATABASE = "mlflow.db"
LOOPBACK = "127.0.0.1"


def resolve_tracking_uri(given: str | None = None) -> str:
    """The store to use: the given one, else MLFLOW_TRACKING_URI, else `mlflow.db` in the working directory.

    A relative SQLite path becomes absolute, so that the address means the same everywhere.
    """
    uri = given or os.environ.get("MLFLOW_TRACKING_URI") or SQLITE + DEFAULT_DATABASE
    database = sqlite_path(uri)
    return uri if database is None else f"{SQLITE}{database}"


def sqlite_path(tracking_uri: str) -> Path | None:
    """The absolute path of a SQLite store's file, None for any other store."""
    if not tracking_uri.startswith(SQLITE):
        return None
    return Path(tracking_uri.removeprefix(SQLITE)).absolute()


def shown_uri(tracking_uri: str) -> str:
    """The address without user, password and query."""
    return redact_address(tracking_uri).partition("?")[0]


def ui_command(port: int = 5000) -> list[str]:
    """The command that serves MLflow's pages on 127.0.0.1 only, of the store that `ui_environment` names."""
    return [*(sys.executable, "-m", "mlflow", "ui"), *("--host", LOOPBACK, "--port", str(port), "--workers", "1")]


def ui_environment(tracking_uri: str) -> dict[str, str]:
    """The variable that `ui_command` reads the store from: a command line, and a password in it, is seen by everybody.

    Raises:
        InputError: the store is a server, which has its own pages.
    """
    if tracking_uri.startswith(("http://", "https://")):
        raise InputError(f"{shown_uri(tracking_uri)} is an MLflow server and has its own pages; open it in a browser")
    return {"MLFLOW_BACKEND_STORE_URI": tracking_uri}


def ui_words(tracking_uri: str, command: str, *, given: bool = False) -> str:
    """How to browse this store, as the end of a sweep says it.

    Args:
        tracking_uri: The store.
        command: The command line that serves the study from the store that its user's environment names.
        given: Whether the store was named on the command line, so that it must be there too.
    """
    if tracking_uri.startswith(("http://", "https://")):
        return shown_uri(tracking_uri)
    then = "then open the pages that it names"
    if redact_address(tracking_uri) != tracking_uri:
        return f"{shown_uri(tracking_uri)}: set MLFLOW_TRACKING_URI to the whole address, run {command}, {then}"
    return f"{command}{f' --tracking-uri {shlex.quote(tracking_uri)}' if given else ''}   {then}"
