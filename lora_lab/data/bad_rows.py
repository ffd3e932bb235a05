"""Bad rows, collected over all datasets and kinds of fault, so that one run names them all."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX_LISTED = 5
MAX_PLACES = 50
"""Places of left-out rows that a note names, the listed ones included."""


class BadField(Exception):  # noqa: N818 - never leaves this package; it becomes a line of an InputError
    """A field of a row that cannot be right; the message is `field: what is wrong; what to do`."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}")


@dataclass(slots=True)
class BadRows:
    """What is wrong with the rows of a study's datasets, one problem per row."""

    skip: bool = False
    """Whether bad rows are left out (`data.skip_invalid`) instead of refused."""
    rows: int = 0
    """Rows looked at, good and bad."""
    _problems: dict[str, str] = field(default_factory=dict)

    def add(self, place: str, problem: object) -> None:
        """Note that the row at `place` is bad; of several problems with one row, the first is kept."""
        self._problems.setdefault(place, str(problem))

    def settle(self) -> tuple[str, ...]:
        """A note on the rows that are left out; no note where no row is bad.

        Raises:
            InputError: there are bad rows and they are not skipped; the first five, one per line, and how many
                in all.
        """
        if not self._problems:
            return ()
        places = sorted(self._problems, key=_natural)
        if not self.skip:
            lines = [f"{place}: {self._problems[place]}" for place in places[:MAX_LISTED]]
            if len(places) > MAX_LISTED:
                lines.append(f"{len(places)} of {self.rows} rows are bad; the first {MAX_LISTED} are listed")
            raise InputError("\n".join(lines))
        reasons = [f"{place} ({self._problems[place].rpartition('; ')[0]})" for place in places[:MAX_LISTED]]
        more = [f"and {len(places) - MAX_PLACES} more"] if len(places) > MAX_PLACES else []
        listed = ", ".join((*reasons, *places[MAX_LISTED:MAX_PLACES], *more))
        return (f"data.skip_invalid: {len(places)} of {self.rows} rows are left out: {listed}",)

    def settle_after(self, load: Callable[[], T]) -> tuple[T, tuple[str, ...]]:
        """What `load` gives, and the note on the rows that it left out.

        Raises:
            InputError: bad rows that are not skipped, which come before what follows from them.
        """
        try:
            loaded = load()
        except InputError:
            self.settle()
            raise
        return loaded, self.settle()


def _natural(place: str) -> list[tuple[int, str]]:
    """Line 4 before line 12."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", place)]
