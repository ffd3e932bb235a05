"""The process of one item, as the run sees it: started, told to go on, watched, taken up again behind a lost cell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GRACE_S = 6.0
RELAUNCHES = 3
PATIENCE_S = 150.0
"""For the imports of a process; on a bare machine the first ones are slow."""
LEAST_S = 12.0
"""With less time left, an item is not taken up again."""


@dataclass
class Launch:
    """How the processes of items are started."""

    scratch: Path
    project: Path
    site: Path | None
    environment: dict[str, str]
    toy: bool
    limits: float
    """Factor on the time limits of cells, and on the patience with imports."""
    cells: str = ""
    """A regular expression: only cells whose names it finds something in."""
    inject: dict[str, dict[str, str]] = field(default_factory=dict)
    """By item and cell: what goes wrong there, in rehearsals."""

    def command(self, item: str, result: Path, done: list[str]) -> list[str]:
        command = [sys.executable, "-m", "gpu_items.process", item, "--result", str(result)]
        command += ["--scratch", str(self.scratch), "--project", str(self.project), "--skip", json.dumps(done)]
        command += ["--cells", self.cells, "--inject", json.dumps(self.inject.get(item, {}))]
        return command + ["--toy"] * self.toy + (["--site", str(self.site)] if self.site else [])


class Book(Protocol):
    """Where the figures go."""

    items: dict[str, dict[str, Any]]

    def cell(self, item: str, name: str, line: dict[str, Any]) -> None: ...

    def unfinished(self, item: str) -> list[str]: ...


class Child:
    """A process that runs the cells of one item: it imports, says that it is ready, and waits for its deadline."""

    def __init__(self, item: str, launch: Launch, book: Book, last: float, environment: dict[str, str]) -> None:
        self.item, self._launch, self._book, self._last = item, launch, book, last
        self._environment = environment
        self._deadline_of: Callable[[], float] | None = None
        self.deadline = 0.0
        self._launches = 0
        self.over = False
        self._start()

    def _start(self) -> None:
        launch = self._launch
        self._launches += 1
        self._ready = self.gone = self._finished = False
        self._cell: str | None = None
        self._cell_ends = 0.0
        self._position, self._started = 0, time.time()
        self._result = launch.scratch / f"{self.item}-{time.monotonic_ns()}.jsonl"
        self._result.touch()
        command = launch.command(self.item, self._result, list(self._book.items[self.item]["cells"]))
        with (launch.scratch / f"{self.item}.log").open("a") as log:
            # A group of its own, so that what it starts ends with it; not a session, which would outlive the call.
            self._process = subprocess.Popen(  # noqa: S603 -- this package's own module
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=launch.environment | self._environment,
                cwd=launch.scratch,
                process_group=0,
                text=True,
            )

    def begin(self, deadline_of: Callable[[], float]) -> None:
        """Let it measure as soon as it is ready; `deadline_of` is asked then."""
        self._deadline_of = deadline_of

    def _go(self) -> None:
        assert self._deadline_of is not None
        assert self._process.stdin is not None
        self.deadline, self.gone = self._deadline_of(), True
        with suppress(OSError, ValueError):
            self._process.stdin.write(f"go {self.deadline - 1.0}\n")
            self._process.stdin.flush()

    def read(self) -> None:
        """Take in what the process has written since."""
        with self._result.open() as file:
            file.seek(self._position)
            while (line := file.readline()).endswith("\n"):
                self._position = file.tell()
                self._take(json.loads(line))

    def _take(self, line: dict[str, Any]) -> None:
        kind, cell, found = line.pop("event"), line.pop("cell", None), self._book.items[self.item]
        match kind:
            case "ready":
                found["import_s"], self._ready = line["seconds"], True
            case "cells":
                found["order"] = line["names"]
            case "begin":
                self._cell, self._cell_ends = cell, time.time() + line["limit_s"] * self._launch.limits
            case "done" | "failed":
                self._book.cell(self.item, cell, line | {"ok": kind == "done"})
                self._cell = None
            case "broken":
                found.setdefault("notes", []).append(f"CUDA was broken after that: {line['error']}")
            case "end":
                self._finished = True

    def poll(self) -> bool:
        """Whether the item is over; takes it up again where a cell took its process with it."""
        if self.over:
            return True
        ended = self._process.poll() is not None
        self.read()
        if self._finished:
            self.kill()
            self.over = True
        elif ended:
            self._lost(f"its process ended with {self._process.returncode}")
        elif not self._ready:
            if time.time() > self._started + PATIENCE_S * self._launch.limits:
                self._lost("did not get ready")
        elif not self.gone:
            self._go()
        elif self._cell and time.time() > self._cell_ends:
            self._lost("took longer than its limit")
        elif time.time() > self.deadline + GRACE_S:
            self._lost("was still running at the end of its item's time")
        return self.over

    def _lost(self, why: str) -> None:
        """Note what was lost with the process, and start another one behind that, if there is time for it."""
        self.kill()
        self.read()
        if self._cell:
            self._book.cell(self.item, self._cell, {"ok": False, "error": why})
        else:
            self._book.items[self.item].setdefault("notes", []).append(f"{why}, between cells")
        left = (self.deadline if self.gone else self._last) - time.time()
        if not self._book.unfinished(self.item) or self._launches > RELAUNCHES or left < LEAST_S:
            self.over = True
            return
        if self.gone:
            deadline = self.deadline
            self.begin(lambda: deadline)
        self._start()

    def kill(self) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        if self._process.stdin:
            with suppress(OSError):
                self._process.stdin.close()
