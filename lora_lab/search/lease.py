"""One coordinator per study, wherever it runs: a lock where the study's trials are.

The lock of the run folder protects its files. A database can be reached from other folders and machines, where two
coordinators would train the same trials: there the server holds a lock for the study, or the operating system one
beside a SQLite file.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from lora_lab.common.errors import StudyLockedError
from lora_lab.common.lease import lease, locked
from lora_lab.search.locks import LOCKS, lone_engine
from lora_lab.search.urls import backend, sqlite_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection


class StudyLease(Protocol):
    """The right to write to a study."""

    def check(self) -> None:
        """Make sure that the study is still ours, before something is written.

        Raises:
            StudyLockedError: another coordinator has taken it.
            SQLAlchemyError: the server cannot be asked.
        """


@contextmanager
def study_lease(url: str, study_name: str) -> Iterator[StudyLease]:
    """Hold a study in its storage.

    Raises:
        StudyLockedError: another coordinator holds it; the message says which, as far as that is known.
        SQLAlchemyError: the server cannot be asked.
    """
    file = sqlite_file(url)
    if file is None:
        held = ServerLease(url, study_name)
        try:
            held.check()
            yield held
        finally:
            held.close()
    else:
        with lease(file.with_name(f"{file.name}.{study_name}.lock"), f"study {study_name} in {file}"):
            yield FileLease()


class FileLease:
    """A lock of the operating system, which nobody can take away."""

    def check(self) -> None:
        """Nothing to do."""


class ServerLease:
    """A server's lock on a study: taken at the first check, and again where the connection was lost since.

    A restart of the server drops the lock without a word, so it is asked for before each write.

    Args:
        url: The storage.
        study_name: The study in it.
    """

    def __init__(self, url: str, study_name: str) -> None:
        self._name, self._lock_name = study_name, f"lora_lab/{study_name}"
        self._locks, self._engine = LOCKS[backend(url)], lone_engine(url)
        self._connection: Connection | None = None

    def check(self) -> None:
        """Make sure that the study is ours.

        Raises:
            StudyLockedError: another coordinator has it.
            SQLAlchemyError: the server cannot be asked.
        """
        if self._connection is not None:
            try:
                self._connection.execute(text("select 1"))
            except SQLAlchemyError:
                self.close()  # and with it the lock: whether somebody has it by now is for the server to say
            else:
                return
        self._take()

    def close(self) -> None:
        """Let the study go."""
        if self._connection is not None:
            with suppress(SQLAlchemyError):
                self._connection.close()
            self._connection = None

    def _take(self) -> None:
        connection = self._engine.connect()
        try:
            self._locks.greet(connection)
            is_ours = self._locks.take(connection, self._lock_name)
            holder = "" if is_ours else self._locks.holder(connection, self._lock_name)
        except SQLAlchemyError:
            with suppress(SQLAlchemyError):
                connection.close()
            raise
        if not is_ours:
            connection.close()
            raise StudyLockedError(locked(f"study {self._name}", holder))
        self._connection = connection
