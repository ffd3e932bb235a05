"""How the next token of an answer is chosen: the likeliest, or one drawn from the likely ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Sampling:
    """As `GenerationConfig` has it."""

    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    """Only the likeliest tokens whose probabilities add up to this are drawn from."""
    seed: int = 0
    """Of the answer's own random numbers: the same question gets the same answer, whoever is asked beside it."""


class Chooser:
    """Chooses the tokens of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._generator = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: Tensor) -> int:
        """The next token, by the logits [vocabulary] of this place."""
        if self._sampling.temperature == 0:
            return int(logits.argmax())
        scores = logits.detach().float().cpu()[None]
        nothing = torch.empty(1, 0, dtype=torch.int64)
        scores = TemperatureLogitsWarper(self._sampling.temperature)(nothing, scores)
        if self._sampling.top_p < 1:
            scores = TopPLogitsWarper(self._sampling.top_p)(nothing, scores)
        return int(torch.multinomial(scores.softmax(dim=-1)[0], 1, generator=self._generator))
