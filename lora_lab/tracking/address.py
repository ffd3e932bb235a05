"""Where MLflow is: which store is meant, how to show its address, and the command that browses it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lora_lab.common.errors import InputError
from lora_lab.tracking.redaction import redact

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
    return redact(tracking_uri.partition("?")[0])


def ui_command(tracking_uri: str, port: int = 5000) -> list[str]:
    """The command that serves MLflow's pages for this store on 127.0.0.1 only.

    Raises:
        InputError: the store is a server, which has its own pages.

    """
    if tracking_uri.startswith(("http://", "https://")):
        raise InputError(f"{shown_uri(tracking_uri)} is an MLflow server and has its own pages; open it in a browser")
    return [
        *(sys.executable, "-m", "mlflow", "ui"),
        *("--backend-store-uri", tracking_uri),
        *("--host", LOOPBACK, "--port", str(port), "--workers", "1"),
    ]
