"""Optuna's storage behind a proxy that waits out a short outage of the database.

Every operation of an Optuna storage is one transaction, so repeating one that failed repeats nothing that
was written. Only faults that pass by themselves are waited for: a lock, a full disk, a server that is away.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Any

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from lora_lab.common.errors import StorageError
from lora_lab.common.secrets import redact, redact_address, secrets_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from optuna.storages import BaseStorage

PATIENCE_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
PASSING_SQLITE_FAULTS = ("locked", "busy", "full", "disk i/o")
STORAGE_FAULTS = (StorageInternalError, SQLAlchemyError)

_logger = logging.getLogger(__name__)


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


def storage_error(url: str, error: BaseException, waited_s: float = 0.0) -> StorageError:
    """The one-line message for a storage fault, without the URL's secrets."""
    cause = _driver_error(error)
    said = " ".join(str(cause.orig if cause is not None else error).split())
    said = redact(said, secrets_of(url))
    after = f", for {waited_s:.0f} s" if waited_s else ""
    return StorageError(
        f"storage {redact_address(url)}: {said}{after}; nothing told so far is lost: put this right (database "
        "running? disk full? file writable?) and run the same command again"
    )


class PatientStorage:
    """An Optuna storage whose operations are tried again, with growing pauses, for `patience_s` seconds.

    Operations and attributes are those of `optuna.storages.BaseStorage`.

    Raises:
        StorageError: from any operation, when the fault stays or is none that passes.
    """

    def __init__(self, storage: BaseStorage, url: str, patience_s: float = PATIENCE_S) -> None:
        self._storage = storage
        self._url = url
        self._patience_s = patience_s

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._storage, name)
        return functools.partial(self._patiently, attribute) if callable(attribute) else attribute

    def _patiently(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return operation(*args, **kwargs)
            except STORAGE_FAULTS as error:
                waited_s = time.monotonic() - began
                failure = storage_error(self._url, error, waited_s)
                if not _passes(error) or waited_s + pause_s > self._patience_s:
                    raise failure from error
                _logger.warning("%s (trying again for up to %.0f s)", failure, self._patience_s)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
