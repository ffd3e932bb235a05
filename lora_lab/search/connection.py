"""Opening the database that holds the studies."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.storages import RDBStorage, get_storage
from sqlalchemy import event

from lora_lab.common.errors import StorageError
from lora_lab.common.secrets import redact_address
from lora_lab.search.patience import STORAGE_FAULTS, PatientStorage, storage_error
from lora_lab.search.urls import parse_url, sqlite_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Engine

BUSY_TIMEOUT_S = 10.0


def connect(url: str, *, create: bool = True) -> tuple[PatientStorage, Engine]:
    """Open the database of a storage URL, and create its file, folder and tables where these are missing.

    Returns:
        The storage for Optuna, and the engine, to be disposed of at the end.

    Raises:
        InputError: no database URL.
        StorageError: the database cannot be opened, or is missing and `create` is off.
    """
    file = sqlite_file(url)
    with _faults_named(url):
        if file is not None and create:
            file.parent.mkdir(parents=True, exist_ok=True)
        elif file is not None and not file.is_file():
            raise StorageError(
                f"storage {redact_address(url)}: there is no such file; run `python -m lora_lab.sweep` with the "
                "study first, in the same folder"
            )
        # Optuna fills the URL as a format string; a brace in a path or password must survive that.
        rendered = parse_url(url).render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        storage = RDBStorage(rendered, engine_kwargs=_engine_options(is_sqlite=file is not None))
        if file is not None:
            _make_durable(storage.engine)
    return PatientStorage(get_storage(storage), url), storage.engine


def _engine_options(*, is_sqlite: bool) -> dict[str, Any]:
    if is_sqlite:
        return {"connect_args": {"timeout": BUSY_TIMEOUT_S}, "hide_parameters": True}
    return {"pool_pre_ping": True, "hide_parameters": True}


def _make_durable(engine: Engine) -> None:
    """A told trial survives a power cut (FULL), and readers never wait for the coordinator (WAL)."""

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    engine.dispose()  # connections made before would not be configured


@contextmanager
def _faults_named(url: str) -> Iterator[None]:
    """Turn what opening a database can raise into a `StorageError`."""
    try:
        yield
    except ImportError as error:
        driver = parse_url(url).drivername
        raise StorageError(
            f"storage {redact_address(url)}: the Python driver for {driver} is not installed ({error}); "
            "install it, for example `pip install psycopg` for postgresql+psycopg"
        ) from error
    except (*STORAGE_FAULTS, OSError, RuntimeError) as error:
        # RuntimeError is how Optuna refuses tables of another version, with the command that upgrades them.
        raise storage_error(url, error) from error
