"""How much each parameter mattered, and what must be said beside such numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

ADAPTIVE = ("tpe", "gp", "nsga2")
"""Samplers that try promising values more often."""
MIN_TRIALS = 10
"""Fewer leave one trial or none in the best tenth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """Shares by parameter, largest first."""

    trials: int
    """Trials with a value."""
    shares: Mapping[str, Mapping[str, float]]
    """By method, by parameter; each method's sum to 1, whatever interactions and noise do."""
    caveat: str
    """What must be said beside the numbers; never empty."""


def adaptive_caveat(sampler: str, trials: int) -> str | None:
    """What an adaptive sampler does to importances and medians; None where there is nothing to say."""
    if sampler not in ADAPTIVE or trials < MIN_TRIALS:
        return None
    return (
        f"The sampler ({sampler}) tried promising values more often than others: importances and medians per value "
        "describe the region that it searched, not the whole range. `sampler: random`, `qmc` or `grid` measures that."
    )
