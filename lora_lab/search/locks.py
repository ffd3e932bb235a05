"""Locks in a database server: PostgreSQL's advisory locks and MySQL's named ones, held by a connection of their own.

The server drops a lock with its connection, so also when the holder is killed. Connections through pgbouncer in
transaction mode cannot hold one.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from lora_lab.search.urls import connect_arguments, parse_url

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Engine

OPENING_TIMEOUT_S = 60
LONGEST_HOST = 40
"""Characters of a host's name that PostgreSQL keeps beside the rest of an application's name, 63 bytes in all."""
OURS = re.compile(r"lora_lab (.+):(\d+)")


class Locks(Protocol):
    """The locks of one kind of server."""

    def greet(self, connection: Connection) -> None:
        """Say who is here, and let the server notice soon when we are gone."""

    def take(self, connection: Connection, name: str) -> bool:
        """Take a lock for as long as the connection lasts, if it is free."""

    def wait_for(self, connection: Connection, name: str) -> None:
        """Take a lock, which others hold for moments only."""

    def holder(self, connection: Connection, name: str) -> str:
        """Who has a lock, in words."""


class PostgresLocks:
    """Session-level advisory locks of one database, by the first 64 bits of the name's SHA-256."""

    def greet(self, connection: Connection) -> None:
        """Name host and process; a holder whose machine lost its power is noticed within a minute."""
        settings = {
            "application_name": f"lora_lab {socket.gethostname()[:LONGEST_HOST]}:{os.getpid()}",
            "tcp_keepalives_idle": "30",
            "tcp_keepalives_interval": "10",
            "tcp_keepalives_count": "3",
        }
        for setting, value in settings.items():
            _value(connection, "select set_config(:setting, :value, false)", setting=setting, value=value)

    def take(self, connection: Connection, name: str) -> bool:
        """Take a lock for as long as the connection lasts, if it is free."""
        return bool(_value(connection, "select pg_try_advisory_lock(:key)", key=self._key(name)))

    def wait_for(self, connection: Connection, name: str) -> None:
        """Take a lock, which others hold for moments only."""
        _value(connection, "select set_config('lock_timeout', :value, false)", value=f"{OPENING_TIMEOUT_S}s")
        _value(connection, "select pg_advisory_lock(:key)::text", key=self._key(name))

    def holder(self, connection: Connection, name: str) -> str:
        """The host and process that it named itself, or else how the server calls it."""
        key = self._key(name)
        application = _value(
            connection,
            "select a.application_name from pg_locks l join pg_stat_activity a on a.pid = l.pid "
            "where l.locktype = 'advisory' and l.granted and l.objsubid = 1 "
            "and l.database = (select oid from pg_database where datname = current_database()) "
            "and l.classid::bigint = :high and l.objid::bigint = :low",
            high=(key >> 32) & 0xFFFFFFFF,
            low=key & 0xFFFFFFFF,
        )
        known = OURS.fullmatch(application or "")
        return f"process {known[2]} on {known[1]}" if known else "process unknown"

    @staticmethod
    def _key(name: str) -> int:
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


class MySqlLocks:
    """Named locks, which are the whole server's: the database is part of their names."""

    def greet(self, connection: Connection) -> None:
        """Keep the connection through hours without a word."""
        connection.execute(text("set session wait_timeout = 2000000"))

    def take(self, connection: Connection, name: str) -> bool:
        """Take a lock for as long as the connection lasts, if it is free."""
        return bool(_value(connection, "select get_lock(:name, 0)", name=self._name(connection, name)))

    def wait_for(self, connection: Connection, name: str) -> None:
        """Take a lock, which others hold for moments only."""
        lock = self._name(connection, name)
        _value(connection, "select get_lock(:name, :timeout)", name=lock, timeout=OPENING_TIMEOUT_S)

    def holder(self, connection: Connection, name: str) -> str:
        """Where the holder's connection comes from; the server knows no more."""
        host = _value(
            connection,
            "select host from information_schema.processlist where id = is_used_lock(:name)",
            name=self._name(connection, name),
        )
        return f"a session from {host}" if host else "process unknown"

    @staticmethod
    def _name(connection: Connection, name: str) -> str:
        digest = hashlib.sha256(f"{connection.engine.url.database}/{name}".encode()).hexdigest()
        return f"lora_lab/{digest[:48]}"  # at most 64 characters


LOCKS: dict[str, Locks] = {"postgresql": PostgresLocks(), "mysql": MySqlLocks()}
"""The servers that can hold studies, by SQLAlchemy's names for them."""


def lone_engine(url: str) -> Engine:
    """An engine whose connections are nobody else's, and each of whose statements is a transaction."""
    return create_engine(
        parse_url(url),
        poolclass=NullPool,
        isolation_level="AUTOCOMMIT",
        hide_parameters=True,
        connect_args=connect_arguments(url),
    )


def _value(connection: Connection, statement: str, **values: Any) -> Any:
    return connection.execute(text(statement), values).scalar()
