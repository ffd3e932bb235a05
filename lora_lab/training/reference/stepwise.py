"""Running a function that blocks until its end one step at a time."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Stepwise(Generic[T]):
    """A function in a thread of its own that stands still whenever it hands over a value.

    Either that thread runs or the caller's does, never both, so that nothing needs a lock.

    Args:
        run: Called with a function to hand a value over; that returns False when `run` should come to its end.
    """

    def __init__(self, run: Callable[[Callable[[T], bool]], None]) -> None:
        self._run = run
        self._go, self._stands = threading.Semaphore(0), threading.Semaphore(0)
        self._value: T | None = None
        self._error: BaseException | None = None
        self._closing = self._ended = False
        # A daemon: one that stands still must not keep a process from ending.
        self._thread = threading.Thread(target=self._main, daemon=True)

    def next(self) -> T | None:
        """Run to the next value; None at the end. What `run` raises is raised here."""
        if self._ended:
            return None
        self._value = None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stands.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._value

    def close(self) -> None:
        """Let the function come to its end, where it has begun and is not there yet."""
        self._closing = True
        while self._thread.is_alive():
            self._go.release()
            self._thread.join(timeout=1.0)

    def _main(self) -> None:
        try:
            self._run(self._hand_over)
        except BaseException as error:  # noqa: BLE001 -- all of it, to be raised in `next`
            self._error = error
        finally:
            self._value, self._ended = None, True
            self._stands.release()

    def _hand_over(self, value: T) -> bool:
        if not self._closing:
            self._value = value
            self._stands.release()
            self._go.acquire()
        return not self._closing
