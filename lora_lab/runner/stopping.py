"""Ctrl-C and SIGTERM: asked once, a sweep leaves when nothing is lost by it; asked twice, at once."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from lora_lab.common.activity import Interrupted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

    from lora_lab.common.activity import Activity


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Remembers that the user or the system asked the process to end.

    The first signal raises `Interrupted` wherever the process is, as Ctrl-C does: while a base is loaded, data are
    tokenized or a report is made, nothing is lost that the same command would not do again. Where trials train
    (`deferred`) it only is remembered, and whoever trains looks at `requested` between two steps, or calls `beat`
    between two parts of longer work. The second signal raises `Interrupted` in any case.

    All that happens in the main thread, once it is back in Python. A thread that waits here (`wait`) knows of a signal
    at once, whatever the main thread does.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._is_deferred = False
        self.arrived: list[signal.Signals] = []
        """The signals that `wait` has seen, in order."""
        self._before: dict[int, Any] = {}
        self._told_before = sys.unraisablehook
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def install(self) -> None:
        """Take over SIGINT and SIGTERM; call from the main thread, before anything slow."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._remember)
        sys.unraisablehook = self._unraisable
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if hasattr(os, "register_at_fork"):  # a child gets Ctrl-C too, and must not tell it as a second one
            os.register_at_fork(after_in_child=_forget_wakeup)

    def uninstall(self) -> None:
        """Give the signals back."""
        signal.set_wakeup_fd(-1)
        sys.unraisablehook = self._told_before
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _: FrameType | None) -> None:
        is_first = self.signal is None
        self.signal = self.signal or signal.Signals(number)
        if not (is_first and self._is_deferred):
            raise Interrupted

    def _unraisable(self, lost: sys.UnraisableHookArgs) -> None:
        """Say nothing of an `Interrupted` that came in a finalizer, which swallows it: `beat` raises it again."""
        if not isinstance(lost.exc_value, Interrupted):
            self._told_before(lost)

    def wait(self, timeout_s: float) -> None:
        """Until a signal arrives or `wake` is called, but no longer than so many seconds."""
        if select.select([self._reader], [], [], timeout_s)[0]:
            told = self._reader.recv(1024)
            self.arrived += [signal.Signals(number) for number in told if number in SIGNALS]

    def wake(self) -> None:
        """Let the thread that waits go on."""
        with suppress(BlockingIOError):
            self._writer.send(b"\0")

    @contextmanager
    def deferred(self, *, deferred: bool = True) -> Iterator[None]:
        """Within the block, the first signal waits to be asked for; inside it, with False, again it does not."""
        before, self._is_deferred = self._is_deferred, deferred
        try:
            yield
        finally:
            self._is_deferred = before

    @property
    def is_deferred(self) -> bool:
        """Whether there is something to save before the process may end."""
        return self._is_deferred

    def beat(self, _: Activity) -> None:
        """Raise `Interrupted` where the process is to end: to be called before each part of long work."""
        if self.requested:
            raise Interrupted

    @property
    def requested(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM, as shells have it."""
        first = self.arrived[0] if self.arrived else signal.SIGINT
        return 128 + (self.signal or first)


def _forget_wakeup() -> None:
    signal.set_wakeup_fd(-1)
