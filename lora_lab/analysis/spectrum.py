"""What an adapter learned: norm, singular values and effective rank of its update, from its two factors alone.

The update of a module is scaling * B A (Hu et al. 2021, arXiv:2106.09685). Its singular values are those of a small
r x r matrix: B = Q_b R_b and A^T = Q_a R_a give B A = Q_b (R_b R_a^T) Q_a^T, so d_out x d_in is never formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

ENERGY_SHARE = 0.99
"""Directions that carry this share of the update's squared norm count as used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spectrum:
    """The update of one module."""

    r: int
    """Rank given."""
    d_in: int
    d_out: int
    singular_values: tuple[float, ...]
    """Descending; min(r, d_in, d_out) of them."""

    @property
    def frobenius_norm(self) -> float:
        """The Frobenius norm of the update."""
        return float(np.linalg.norm(self.singular_values))

    @property
    def spectral_norm(self) -> float:
        """The largest singular value."""
        return self.singular_values[0]

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared spectral norm: from 1 to r; 0 for an update of zero."""
        return (self.frobenius_norm / self.spectral_norm) ** 2 if self.spectral_norm else 0.0

    @property
    def effective_rank(self) -> float:
        """The exponential of the entropy of the normalized singular values (Roy and Vetterli 2007): from 1 to r."""
        values = np.asarray(self.singular_values)
        shares = values[values > 0] / values.sum() if values.sum() else values[:0]
        return float(np.exp(-np.sum(shares * np.log(shares)))) if len(shares) else 0.0

    @property
    def rank_used(self) -> int:
        """Directions that carry 99% of the update's squared norm, of the rank given; 0 for an update of zero."""
        energy = np.cumsum(np.square(self.singular_values))
        if not energy[-1]:
            return 0
        return int(np.searchsorted(energy, ENERGY_SHARE * energy[-1])) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumSummary:
    """All modules of one adapter."""

    modules: int
    r: int
    """The largest rank given."""
    frobenius_norm: float
    """Of all updates together."""
    effective_rank: float
    """Median over the modules."""
    stable_rank: float
    """Median over the modules."""
    rank_used: float
    """Median over the modules; of `r`."""
    share_used: float
    """Directions used over directions given, all modules together: 0 to 1."""


def spectrum(a: np.ndarray, b: np.ndarray, scaling: float) -> Spectrum:
    """Singular values of scaling * B A.

    Args:
        a: [r, d_in], any float type.
        b: [d_out, r].
        scaling: alpha / r, or alpha / sqrt(r) for rsLoRA.

    Raises:
        InputError: the shapes do not fit each other, or a value is not finite.

    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or a.size == 0 or b.size == 0:
        raise InputError(f"A must be [r, d_in] and B [d_out, r], but got A {list(a.shape)} and B {list(b.shape)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("A and B must be finite, but a value is not; the adapter is damaged: train it again")
    right = np.linalg.qr(a.astype(np.float64).T).R
    left = np.linalg.qr(b.astype(np.float64)).R
    values = abs(scaling) * np.linalg.svdvals(left @ right.T)
    return Spectrum(r=a.shape[0], d_in=a.shape[1], d_out=b.shape[0], singular_values=tuple(map(float, values)))


def factors(a: np.ndarray, b: np.ndarray, r: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A [r, d_in] and B [d_out, r] of each matrix that two factors in an adapter's file are of.

    PEFT stacks those of the E experts of one parameter (`lora.ParamWrapper`): A is [E r, d_in] with the experts one
    after the other, B is [d_out, r E] with all experts' columns of one direction side by side.

    Args:
        a: [E r, d_in]; E is 1 for a linear module.
        b: [d_out, r E].
        r: The rank of each adapter.
    """
    experts = a.shape[0] // r
    apart = b.reshape(b.shape[0], r, experts)
    return [(a[index * r : (index + 1) * r], apart[:, :, index]) for index in range(experts)]


def summarize(spectra: Iterable[Spectrum]) -> SpectrumSummary:
    """Norm and ranks over the modules of one adapter.

    Raises:
        InputError: there is no module.
    """
    modules = list(spectra)
    if not modules:
        raise InputError("an adapter must have at least one module, but this one has none; train it again")
    used = [module.rank_used for module in modules]
    return SpectrumSummary(
        modules=len(modules),
        r=max(module.r for module in modules),
        frobenius_norm=float(np.linalg.norm([module.frobenius_norm for module in modules])),
        effective_rank=float(np.median([module.effective_rank for module in modules])),
        stable_rank=float(np.median([module.stable_rank for module in modules])),
        rank_used=float(np.median(used)),
        share_used=sum(used) / sum(len(module.singular_values) for module in modules),
    )
