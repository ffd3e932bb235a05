"""Processes that die between any two things that they do to the disk."""

from __future__ import annotations

import os
from pathlib import Path


class Killer:
    """Ends the process, without any clean-up, at the n-th thing that it does to the disk."""

    def __init__(self, at: int) -> None:
        self.left = at

    def count(self) -> None:
        if self.left == 0:
            os._exit(9)
        self.left -= 1

    def wrap(self, function):
        def counted(*args, **kwargs):
            self.count()
            return function(*args, **kwargs)

        return counted

    def install(self) -> None:
        for owner, name in ((os, "replace"), (os, "fsync"), (os, "open"), (Path, "unlink"), (Path, "mkdir")):
            setattr(owner, name, self.wrap(getattr(owner, name)))

        def opened(path, mode="r", *args, **kwargs):
            self.count()
            file = open(path, mode, *args, **kwargs)  # noqa: PTH123, SIM115 -- what Path.open is replaced by
            return file if mode in ("r", "rb") else HalfWriter(file, self)

        Path.open = opened


class HalfWriter:
    """A file in which a kill can fall between the two halves of a write."""

    def __init__(self, file, killer) -> None:
        self.file, self.killer = file, killer

    def write(self, payload) -> None:
        for part in (payload[: len(payload) // 2], payload[len(payload) // 2 :]):
            self.file.write(part)
            self.file.flush()
            self.killer.count()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def __getattr__(self, name):
        return getattr(self.file, name)


def killed(at: int, action) -> bool:
    """Run `action` in a forked process that dies at its n-th disk operation; whether it did."""
    child = os.fork()
    if child == 0:
        Killer(at).install()
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
