"""How long a study will take, from a few of its steps that were timed on this device."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Seconds:
    """A duration that was estimated from samples."""

    mean: float
    variance: float = 0.0
    """Of the mean, as an estimate."""
    samples: int = 0

    @classmethod
    def of(cls, samples: Sequence[float]) -> Seconds:
        """The duration that such samples have on average."""
        spread = statistics.variance(samples) if len(samples) > 1 else 0.0
        return cls(statistics.fmean(samples), spread / len(samples), len(samples))

    @classmethod
    def per_unit(cls, samples: Sequence[float], units: Sequence[float]) -> Seconds:
        """The duration of one unit, from samples of several units each (a ratio of two sums)."""
        mean = sum(samples) / sum(units)
        residuals = [seconds - mean * count for seconds, count in zip(samples, units, strict=True)]
        spread = sum(residual**2 for residual in residuals) / max(1, len(residuals) - 1)
        return cls(mean, spread * len(units) / sum(units) ** 2, len(samples))

    def times(self, count: float) -> Seconds:
        """The duration of so many."""
        return Seconds(self.mean * count, self.variance * count**2, self.samples)

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.mean + other.mean, self.variance + other.variance, self.samples + other.samples)


def total(parts: Iterable[Seconds]) -> Seconds:
    """All of them, one after the other."""
    return sum(parts, start=Seconds(0.0))


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a whole study will take on this device."""

    seconds: float
    low: float
    high: float
    """The 95% interval of `seconds`, from the spread of the steps and batches that were timed."""
    training_s: float
    evaluation_s: float
    other_s: float
    """Loading, the bare base's evaluation, and admissions with their memory probes."""
    pack_size: int
    """How many trials were timed side by side."""
    tokens_per_second: float
    steps: int
    """Steps that were timed."""
    batches: int
    """Batches of evaluations that were timed."""


def calibration(
    training: Seconds, evaluation: Seconds, other: Seconds, *, pack_size: int, tokens_per_second: float
) -> Calibration:
    """Put the parts of a study together."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # half a second: only where needed

    whole = total((training, evaluation, other))
    freedom = max(1, min(part.samples for part in (training, evaluation) if part.mean) - 1)
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(whole.variance)
    return Calibration(
        seconds=whole.mean,
        low=max(other.mean, whole.mean - half),
        high=whole.mean + half,
        training_s=training.mean,
        evaluation_s=evaluation.mean,
        other_s=other.mean,
        pack_size=pack_size,
        tokens_per_second=tokens_per_second,
        steps=training.samples,
        batches=evaluation.samples,
    )
