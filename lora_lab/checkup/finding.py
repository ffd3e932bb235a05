"""One thing that was looked at on a machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Level = Literal["ok", "note", "problem"]
"""A note is worth knowing; a problem keeps studies from running, or from what they are asked for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found."""

    name: str
    """What was looked at, such as `memory`."""
    level: Level
    text: str
    """One sentence; of a problem, with what to do."""
    values: Mapping[str, Any] = field(default_factory=dict)
    """The figures behind the sentence, for programs."""
