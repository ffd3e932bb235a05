"""Answers that are handed over token by token: rows of several adapters in every pass, each with a length of its own.

As in `packed.generation` no row is padded: all begin at their first token, and a row whose prompt is longer than the
shortest is given the rest of it token by token, while its neighbors generate.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_lab.training.packed.linear import UnpackableError
from lora_lab.training.packed.model import NOTHING_KEPT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from lora_lab.training.packed.linear import Adapter
    from lora_lab.training.packed.model import PackedModel


class Stream:
    """Answers in work that share forward passes.

    Args:
        model: The base with adapters behind its linear modules.
        device: Where token ids are put.
        rows: Who answers (None is the bare base), and the token ids [n] of the prompt.
        keeps: Whether the base goes on from what it has kept of the tokens that it read.
    """

    def __init__(
        self,
        model: PackedModel,
        device: torch.device,
        rows: Sequence[tuple[Adapter | None, np.ndarray]],
        *,
        keeps: bool,
    ) -> None:
        self._model, self._device, self._keeps = model, device, keeps
        self._adapters = [adapter for adapter, _ in rows]
        self._tokens = [[int(token) for token in prompt] for _, prompt in rows]
        self._prompts = [len(tokens) for tokens in self._tokens]
        self._open = sorted(range(len(rows)), key=lambda place: id(self._adapters[place]))
        """Places of the rows that are not finished, those of one adapter together."""
        self._seen, self._kept = 0, NOTHING_KEPT

    @torch.no_grad()
    def step(self, choose: Callable[[int, Tensor], int]) -> list[tuple[int, int]]:
        """One more token of every open row that has read its prompt: its place, and the token.

        Args:
            choose: The token of a row by its place and its logits [vocabulary].
        """
        new: list[tuple[int, int]] = []
        while not new:
            logits = self._pass()
            for place, row in zip(self._open, logits, strict=True):
                if len(self._tokens[place]) == self._seen:
                    token = choose(place, row)
                    self._tokens[place].append(token)
                    new.append((place, token))
        return new

    def close(self, places: Sequence[int]) -> None:
        """These rows are finished."""
        staying = [index for index, place in enumerate(self._open) if place not in places]
        self._open = [self._open[index] for index in staying]
        index = torch.tensor(staying, dtype=torch.int64, device=self._device)
        for cache in self._kept.values() if staying else ():
            cache.reorder_cache(index)

    def open_rows(self) -> list[tuple[int, np.ndarray]]:
        """The rows that are not finished, each with its tokens so far."""
        return [(place, np.array(self._tokens[place], np.int64)) for place in self._open]

    def _pass(self) -> Tensor:
        """Read what comes next of every row; the logits [R, vocabulary] behind it."""
        self._seen = self._seen + 1 if self._seen else min(self._prompts[place] for place in self._open)
        return self._read()

    def _read(self) -> Tensor:
        begin = self._seen - 1 if self._kept else 0
        ids = [self._tokens[place][begin : self._seen] for place in self._open]
        runs = [(adapter, len(list(own))) for adapter, own in groupby(self._adapters[place] for place in self._open)]
        try:
            logits, self._kept = self._model.next_logits(
                torch.tensor(ids, dtype=torch.int64, device=self._device),
                [adapter for adapter, _ in runs],
                [count for _, count in runs],
                self._kept,
                keep=self._keeps,
            )
        except UnpackableError:  # some project all that they keep anew at every step
            if not self._keeps:
                raise
            self._keeps, self._kept = False, NOTHING_KEPT
            return self._read()
        return logits
