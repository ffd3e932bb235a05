"""Database URLs: how a file becomes one, and how one is shown without its secrets."""

from __future__ import annotations

import re
from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from lora_lab.common.errors import InputError
from lora_lab.common.secrets import mask_secrets

SECRET_QUERY_KEY = re.compile(r"pass|pwd|secret|token|key", re.IGNORECASE)


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
            f"storage: {mask_secrets(url)!r} is no database URL; write for example sqlite:///runs/study.db "
            "or postgresql+psycopg://user@host/database"
        ) from None


def mask_password(url: str) -> str:
    """The URL with `***` for its password and for every secret among its query parameters."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return mask_secrets(url)
    secret = [key for key in parsed.query if SECRET_QUERY_KEY.search(key)]
    shown = parsed.update_query_dict(dict.fromkeys(secret, "MASKED")).render_as_string(hide_password=True)
    return shown.replace("=MASKED", "=***")


def without_secrets_of(url: str, text: str) -> str:
    """A text, such as a driver's message, without the secrets that the URL holds."""
    parsed = parse_url(url)
    queried = [value for key, value in parsed.query.items() if SECRET_QUERY_KEY.search(key)]
    flat = [part for value in queried for part in ([value] if isinstance(value, str) else value)]
    for secret in filter(None, (parsed.password, *flat)):
        text = text.replace(secret, "***")
    return text


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
            f"storage: {mask_password(url)!r} is a database in memory, which cannot be resumed; "
            "give it a file, as in sqlite:///runs/study.db"
        )
    return Path(str(parsed.database))
