"""What an item consists of: cells, each tried by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@dataclass
class Cell:
    """One measurement of an item, and the time that it is given."""

    name: str
    run: Callable[[], dict]
    needs_s: float = 4.0
    """Not begun with less time left."""
    limit_s: float = 45.0
    """The parent ends the process after so long."""
    always: bool = False
    """Runs also where the item is taken up again (loading)."""


@dataclass
class Context:
    """Where an item runs, and whether in miniature."""

    toy: bool
    scratch: Path
    project: Path
    site: Path | None = None
    """Where the carried packages are."""


def rounded(value: Any) -> Any:
    """Five significant digits everywhere; what JSON has no word for becomes text."""
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
