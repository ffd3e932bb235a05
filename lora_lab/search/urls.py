"""Database URLs: which databases keep studies, how a file becomes a URL, and which file one means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from lora_lab.common.errors import InputError
from lora_lab.common.secrets import redact_address

EXAMPLES = {
    "sqlite": "sqlite:///runs/study.db",
    "postgresql": "postgresql+psycopg://user@host/database",
    "mysql": "mysql+pymysql://user@host/database",
}
"""How the URL of each kind of database is written."""
OTHER_NAMES = {"postgres": "postgresql", "pgsql": "postgresql", "mariadb": "mysql", "sqlite3": "sqlite"}
LIBPQ_DRIVERS = ("psycopg", "psycopg2")
LIBPQ_ARGUMENTS = {
    "client_encoding": "utf8",
    "connect_timeout": "10",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}
"""A server that went away without a word is noticed in half a minute, instead of hours."""


def sqlite_url(path: Path | str) -> str:
    """The URL of a SQLite file; characters that mean something in a URL (`?`, `#`, `%`, `{`) are escaped."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def parse_url(url: str) -> URL:
    """A storage URL in its parts.

    Raises:
        InputError: it is no URL of a database that can keep studies.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InputError(
            f"storage: {redact_address(url)!r} is no database URL; write for example {_examples()}"
        ) from None
    name, _, driver = parsed.drivername.partition("+")
    if name in OTHER_NAMES:
        meant = OTHER_NAMES[name]
        raise InputError(f"storage: {redact_address(url)!r} begins with {name}; write {EXAMPLES[meant]}")
    if name not in EXAMPLES:
        raise InputError(
            f"storage: {redact_address(url)!r} is of {name}, which keeps no studies; write for example {_examples()}"
        )
    try:
        parsed.get_dialect()
    except (NoSuchModuleError, ArgumentError):
        raise InputError(
            f"storage: {redact_address(url)!r} names the driver {driver}, which SQLAlchemy does not know; "
            f"write {EXAMPLES[name]}"
        ) from None
    return parsed


def backend(url: str) -> str:
    """The kind of database: `sqlite`, `postgresql` or `mysql`.

    Raises:
        InputError: it is no URL of a database that can keep studies.
    """
    return parse_url(url).get_backend_name()


def connect_arguments(url: str) -> dict[str, Any]:
    """What a driver is told beside a server's URL, less what the URL says itself."""
    parsed = parse_url(url)
    given = LIBPQ_ARGUMENTS if parsed.get_driver_name() in LIBPQ_DRIVERS else {}
    return {name: value for name, value in given.items() if name not in parsed.query}


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL, None for any other database.

    Raises:
        InputError: the database would be in memory, and lost with the process.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        return None
    if parsed.database in (None, "", ":memory:"):
        raise InputError(
            f"storage: {redact_address(url)!r} is a database in memory, which cannot be resumed; "
            f"give it a file, as in {EXAMPLES['sqlite']}"
        )
    return Path(str(parsed.database))


def _examples() -> str:
    first, *others, last = EXAMPLES.values()
    return f"{', '.join([first, *others])} or {last}"
