"""Optuna's storage behind a proxy that waits out an outage of the database.

Every operation of an Optuna storage is one transaction, so repeating one that failed repeats nothing that
was written. Only faults that pass by themselves are waited for: a lock, a full disk, a server that is away.
"""

from __future__ import annotations

import functools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from lora_lab.common.errors import StorageAwayError, StorageError
from lora_lab.common.secrets import redact, redact_address, secrets_of
from lora_lab.search.lease import FileLease

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.storages import BaseStorage

    from lora_lab.search.lease import StudyLease

SERVER_PATIENCE_S = 600.0
FILE_PATIENCE_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
TOLD_AFTER_S = 1.0
"""Shorter outages are not worth a line."""
GLANCE_S = 0.2
"""While waiting, look this often whether the user wants to stop."""
PASSING_SQLITE_FAULTS = ("locked", "busy", "full", "disk i/o")
STORAGE_FAULTS = (StorageInternalError, SQLAlchemyError)
WRITES = frozenset(
    {
        "create_new_study",
        "create_new_trial",
        "delete_study",
        "set_study_system_attr",
        "set_study_user_attr",
        "set_trial_intermediate_value",
        "set_trial_param",
        "set_trial_state_values",
        "set_trial_system_attr",
        "set_trial_user_attr",
    }
)

_logger = logging.getLogger(__name__)


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Patience:
    """How an outage of the database is met."""

    limit_s: float | None = None
    """How long it is waited out; None for ten minutes, or one where the database is a file."""
    say: Callable[[str], None] = _logger.warning
    """Takes one line when it begins, and one when it ends."""
    is_over: Callable[[], bool] = _never
    """Whether the user wants to stop, and so to wait no longer."""


def _driver_error(error: BaseException) -> DBAPIError | None:
    """The database driver's error behind Optuna's."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DBAPIError):
        cause = cause.__cause__
    return cause


def _passes(error: BaseException) -> bool:
    """Whether a fault may end by itself, so that waiting makes sense."""
    cause = _driver_error(error)
    if cause is None:
        return False
    if type(cause.orig).__module__.startswith("sqlite3"):
        return any(fault in str(cause.orig).lower() for fault in PASSING_SQLITE_FAULTS)
    return cause.connection_invalidated or isinstance(cause, (OperationalError, InterfaceError))


def _said(url: str, error: BaseException) -> str:
    """What the driver said, in one line without the URL's secrets."""
    cause = _driver_error(error)
    return redact(" ".join(str(cause.orig if cause is not None else error).split()), secrets_of(url))


def storage_error(url: str, error: BaseException, waited_s: float = 0.0) -> StorageError:
    """The one-line message for a storage fault, without the URL's secrets."""
    after = f", for {waited_s:.0f} s" if waited_s else ""
    return StorageError(
        f"storage {redact_address(url)}: {_said(url, error)}{after}; nothing told so far is lost: put this right "
        "(database running? disk full? file writable?) and run the same command again"
    )


class Outage:
    """One outage, from the first fault to the next answer.

    Args:
        url: The storage.
        patience: How it is met.
        limit_s: How long it is waited out.
    """

    def __init__(self, url: str, patience: Patience, limit_s: float) -> None:
        self._url, self._patience, self._limit_s = url, patience, limit_s
        self._began = self._next_try = time.monotonic()
        self._pause_s = FIRST_PAUSE_S
        self._told = False

    @property
    def waited_s(self) -> float:
        """How long it has lasted."""
        return time.monotonic() - self._began

    @property
    def may_be_over(self) -> bool:
        """Whether it is time to try again."""
        return time.monotonic() >= self._next_try

    def give_up(self, error: BaseException, waited_s: float) -> None:
        """Let a fault be an error where waiting makes no sense, or no more after so many seconds.

        Raises:
            StorageError: it is none that passes, or it was waited for long enough.
        """
        if not _passes(error) or waited_s + self._pause_s > self._limit_s:
            raise storage_error(self._url, error, waited_s) from error

    def note(self, error: BaseException) -> None:
        """Take in a fault, tell of it, and set the time of the next try."""
        if not self._told and self.waited_s + self._pause_s > TOLD_AFTER_S:
            self._told = True
            self._patience.say(
                f"storage {redact_address(self._url)} is away; trials train on to their next evaluation, which waits "
                f"for it up to {self._limit_s:.0f} s ({_said(self._url, error)})"
            )
        self._next_try = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def wait(self) -> None:
        """Sleep until the next try.

        Raises:
            StorageAwayError: the user wants to stop.
        """
        while not self.may_be_over:
            if self._patience.is_over():
                raise StorageAwayError(
                    f"storage {redact_address(self._url)} has been away for {self.waited_s:.0f} s, and was not waited "
                    "for any longer; what it was not told is trained again"
                )
            time.sleep(max(0.0, min(GLANCE_S, self._next_try - time.monotonic())))

    def end(self) -> None:
        """Say that it is over, if it was said that it began."""
        if self._told:
            self._patience.say(f"storage {redact_address(self._url)} is back after {self.waited_s:.0f} s")


class PatientStorage:
    """An Optuna storage whose operations are tried again, with growing pauses, until an outage is over.

    Operations and attributes are those of `optuna.storages.BaseStorage`.

    Args:
        storage: Optuna's.
        url: Where it is.
        patience: How an outage is met.
        is_server: Whether the database is a server.

    Raises:
        StorageError: from any operation, when the fault stays or is none that passes.
        StorageAwayError: from any operation, when the user wants to stop while it is waited for.
        StudyLockedError: from a write, when another coordinator has taken the study.
    """

    def __init__(self, storage: BaseStorage, url: str, patience: Patience, *, is_server: bool) -> None:
        self._storage, self._url, self._patience = storage, url, patience
        self._is_server = is_server
        usual_s = SERVER_PATIENCE_S if is_server else FILE_PATIENCE_S
        self._limit_s = usual_s if patience.limit_s is None else patience.limit_s
        self._outage: Outage | None = None
        self.lease: StudyLease = FileLease()
        """Is asked before each write."""

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._storage, name)
        if not callable(attribute):
            return attribute
        return functools.partial(self._patiently, attribute, is_write=name in WRITES)

    @property
    def answers(self) -> bool:
        """Whether the database is there now; a file always is. While it is away, it is asked ever less often."""
        if not self._is_server:
            return True
        if self._outage is not None and not self._outage.may_be_over:
            return False
        try:
            self.lease.check()
        except STORAGE_FAULTS as error:
            self._begun().note(error)
            return False
        self._over()
        return True

    def _patiently(self, operation: Callable[..., Any], *args: Any, is_write: bool, **kwargs: Any) -> Any:
        waiting_since: float | None = None
        while True:
            try:
                if is_write:
                    self.lease.check()
                result = operation(*args, **kwargs)
            except STORAGE_FAULTS as error:
                outage = self._begun()
                waiting_since = waiting_since or time.monotonic()
                outage.give_up(error, time.monotonic() - waiting_since)
                outage.note(error)
                outage.wait()
            else:
                self._over()
                return result

    def _begun(self) -> Outage:
        self._outage = self._outage or Outage(self._url, self._patience, self._limit_s)
        return self._outage

    def _over(self) -> None:
        if self._outage is not None:
            self._outage.end()
            self._outage = None
