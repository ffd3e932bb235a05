"""LoRA dropout whose masks depend on the trial, the step and the module, and on nothing around the trial."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class Dropout:
    """Draws the dropout masks of one trial.

    Every mask has a seed of its own, made from (trial seed, step, micro-batch, module). So no generator state
    has to be kept: a resumed trial and a recomputed forward pass see the same masks. A mask is drawn for the
    trial's own rows and length, before padding, so that a longer neighbor does not change it.
    """

    def __init__(self, probability: float, seed: int) -> None:
        self._probability = probability
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        """One for each device that modules are on."""
        self._step = self._micro_batch = 0
        self._rows = self._length = 0

    @property
    def active(self) -> bool:
        """Whether there is any dropout."""
        return self._probability > 0

    def prepare(self, step: int, micro_batch: int, rows: int, length: int) -> None:
        """Say what goes through the model next: its step, and its own rows and longest row."""
        self._step, self._micro_batch, self._rows, self._length = step, micro_batch, rows, length

    @property
    def gain(self) -> float:
        """1 / (1 - p): what the product of a masked input is multiplied by, once, and not rounded to a low dtype."""
        return 1.0 / (1.0 - self._probability)

    def mask(self, module: int, x: Tensor) -> Tensor:
        """A boolean mask for the input `x` [n, d] of module number `module`: True with chance 1 - p.

        `n` is rows x padded length in the body of the model, and the number of labels at its head.
        """
        key = f"{self._seed}/{self._step}/{self._micro_batch}/{module}".encode()
        if x.device not in self._generators:
            self._generators[x.device] = torch.Generator(x.device)
        generator = self._generators[x.device]
        generator.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1)
        keep = 1.0 - self._probability
        width = x.shape[-1]
        padded = x.shape[0] // self._rows if x.shape[0] % self._rows == 0 else 0
        if padded <= self._length:
            return torch.empty_like(x, dtype=torch.bool).bernoulli_(keep, generator=generator)
        mask = x.new_ones(self._rows, padded, width, dtype=torch.bool)
        own = x.new_empty(self._rows, self._length, width, dtype=torch.bool)
        mask[:, : self._length] = own.bernoulli_(keep, generator=generator)
        return mask.view(-1, width)
