"""Where long work is, told between any two of its parts, so that it can be watched, and left there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


class Interrupted(BaseException):  # no Exception, as `asyncio.CancelledError` is none: nothing may swallow it
    """The process is to end, and what it was doing was left undone.

    Whoever is in the middle of work leaves no trace of it and lets this pass, or keeps what is whole and returns.
    """


@dataclass(frozen=True, slots=True)
class Activity:
    """What is being done, and which part of it comes next."""

    what: str
    """In words, such as `evaluation of the bare base`."""
    done: int = 0
    """Parts that are done."""
    total: int | None = None
    """Parts that there are; None where that is not known."""
    parts: str = "batches"
    """What the parts are, in the plural."""


TRAINING = Activity("training")
"""Steps of trials, which say themselves how far they are."""

Beat: TypeAlias = Callable[[Activity], None]
"""Called before each part of long work with where that work is; raises `Interrupted` where it is to be left."""


def unwatched(activity: Activity) -> None:
    """The `Beat` of work that nobody watches."""
    del activity
