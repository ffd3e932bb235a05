"""Database URLs: how a file becomes one, and which file one means."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from lora_lab.common.errors import InputError
from lora_lab.common.secrets import redact_address


def sqlite_url(path: Path | str) -> str:
    """The URL of a SQLite file; characters that mean something in a URL (`?`, `#`, `%`, `{`) are escaped."""
    return URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def parse_url(url: str) -> URL:
    """A storage URL in its parts.

    Raises:
        InputError: it is no database URL.
    """
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise InputError(
            f"storage: {redact_address(url)!r} is no database URL; write for example sqlite:///runs/study.db "
            "or postgresql+psycopg://user@host/database"
        ) from None


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
            "give it a file, as in sqlite:///runs/study.db"
        )
    return Path(str(parsed.database))
