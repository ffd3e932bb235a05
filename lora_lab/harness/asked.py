"""What is to be evaluated, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be evaluated, as the command line says it."""

    tasks: Sequence[str]
    include_path: Path | None = None
    limit: float | None = None
    num_fewshot: int | None = None
    batch_size: int | None = None
    """Rows of each column in a forward pass; None: as many as the study evaluates of a trial."""
    apply_chat_template: bool = False
