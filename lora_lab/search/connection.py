"""Opening the database that holds the studies."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optuna.storages import RDBStorage, get_storage
from sqlalchemy import event, text

from lora_lab.common.errors import StorageError
from lora_lab.common.secrets import redact_address
from lora_lab.search.file_system import check_is_local
from lora_lab.search.locks import LOCKS, lone_engine
from lora_lab.search.patience import STORAGE_FAULTS, Patience, PatientStorage, storage_error
from lora_lab.search.urls import EXAMPLES, backend, connect_arguments, parse_url, sqlite_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection, Engine

BUSY_TIMEOUT_S = 10.0
OPENING = "lora_lab: opening"
"""The lock under which tables are made: of several that find none at the same time, all but one would fail."""
EXTRAS = {"postgresql": "postgresql", "mysql": "mysql"}
"""What to install for a server, as an extra of lora_lab."""


def connect(url: str, *, create: bool = True, patience: Patience | None = None) -> tuple[PatientStorage, Engine]:
    """Open the database of a storage URL, and create its file, folder and tables where these are missing.

    Returns:
        The storage for Optuna, and the engine, to be disposed of at the end.

    Raises:
        InputError: no database URL.
        StorageError: the database cannot be opened, or is missing and `create` is off.
    """
    file = sqlite_file(url)
    with faults_named(url):
        if file is not None and create:
            check_is_local(file)
            file.parent.mkdir(parents=True, exist_ok=True)
        elif file is not None and not file.is_file():
            raise StorageError(
                f"storage {redact_address(url)}: there is no such file; run `python -m lora_lab.sweep` with the "
                "study first, in the same folder"
            )
        # Optuna fills the URL as a format string; a brace in a path or password must survive that.
        rendered = parse_url(url).render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
        if file is not None:
            options = {"connect_args": {"timeout": BUSY_TIMEOUT_S}, "hide_parameters": True}
            storage = RDBStorage(rendered, engine_kwargs=options)
            _make_durable(storage.engine)
        else:
            with _opening(url):
                options = {"connect_args": connect_arguments(url), "pool_pre_ping": True, "hide_parameters": True}
                storage = RDBStorage(rendered, engine_kwargs=options)
    patient = PatientStorage(get_storage(storage), url, patience or Patience(), is_server=file is None)
    return patient, storage.engine


@contextmanager
def _opening(url: str) -> Iterator[None]:
    """Look at a server's database, and have its tables to oneself."""
    kind = backend(url)
    with lone_engine(url).connect() as connection:
        _check_encoding(connection, url, kind)
        LOCKS[kind].wait_for(connection, OPENING)
        yield


def _check_encoding(connection: Connection, url: str, kind: str) -> None:
    """Without Unicode, texts would come back as bytes, and everything would fail obscurely."""
    if kind != "postgresql":
        return
    encoding: Any = connection.execute(text("show server_encoding")).scalar()
    if encoding != "UTF8":
        raise StorageError(
            f"storage {redact_address(url)}: the database is encoded in {encoding}, but must be in UTF8; "
            "make another with CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
        )


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
def faults_named(url: str) -> Iterator[None]:
    """Turn what opening a database can raise into a `StorageError`."""
    try:
        yield
    except ImportError as error:
        kind = backend(url)
        raise StorageError(
            f"storage {redact_address(url)}: the driver {parse_url(url).get_driver_name()} is not installed; "
            f"pip install 'lora-lab[{EXTRAS[kind]}]' and write {EXAMPLES[kind]}"
        ) from error
    except (*STORAGE_FAULTS, OSError, RuntimeError) as error:
        # RuntimeError is how Optuna refuses tables of another version, with the command that upgrades them.
        raise storage_error(url, error) from error
