"""What goes into a forward pass, padded rows of tokens, and what comes out of it, the losses of their label tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lora_lab.data.tokens import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.study.targets import InputLimits

MULTIPLE = 8
"""Of which padded lengths are multiples, if not of more."""
LENGTHS_AN_OCTAVE = 8
"""Padded lengths between a power of two and the next, on a CUDA device."""


@dataclass(frozen=True, slots=True)
class Padding:
    """To which lengths rows are padded on one kind of device: where there are fewer, steps are alike more often.

    On a CUDA device a new length costs heuristics of kernels, blocks of the allocator, and a captured step. So
    there are eight lengths an octave: 64, 72, ..., 128, 144, ..., 256, 288, and so on. For log-normal rows of 600
    tokens in the middle, 1 or 8 of them a batch, that makes 43 or 19 lengths, where multiples of 8 make 250 or 191,
    and 3.7% or 2.1% more tokens than without padding. On a CPU, where every token costs its time, lengths are
    multiples of 8 in training, and what they are in evaluation.
    """

    is_cuda: bool
    most: int | None = None
    """The longest row that the base reads as it reads shorter ones; None for no such limit."""

    @classmethod
    def of(cls, device_type: str, limits: InputLimits) -> Padding:
        """The padding on a device of this type (`cpu`, `cuda`) for a base with these limits."""
        known = [limit for limit in (limits.positions, limits.alike_up_to) if limit is not None]
        return cls(device_type == "cuda", min(known, default=None))

    def training(self, longest: int) -> int:
        """The length of the rows of a training step whose longest row has `longest` tokens."""
        step = MULTIPLE
        if self.is_cuda and longest > 1:
            below = 1 << ((longest - 1).bit_length() - 1)  # the largest power of two below it
            step = max(MULTIPLE, below // LENGTHS_AN_OCTAVE)
        length = -(-longest // step) * step
        return length if self.most is None else max(longest, min(length, self.most))

    def evaluation(self, longest: int) -> int:
        """The length of the rows of an evaluation."""
        return self.training(longest) if self.is_cuda else longest


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of one or several trials, padded on the right to one length, trial after trial."""

    input_ids: Tensor
    """[R, S] int64."""
    labels: Tensor
    """[R, S] int64, `IGNORED` where no loss is taken; [R, S + 1] where what follows the last token is judged too."""
    rows: tuple[int, ...]
    """Rows of each trial; they add up to R."""
    position_ids: Tensor | None = None
    """[R, S] int64: positions within examples, where a row may hold several; each starts at 0."""
    classes: Tensor | None = None
    """[R] int64: the index of every row's class, where that is learned."""
    attention_mask: Tensor | None = None
    """[R, S] int64: 1 for a token, 0 for a pad; given where rows have classes, as their tokens may see later ones."""
    token_type_ids: Tensor | None = None
    """[R, S] int64: which of a row's two texts a token is of, where the base is told it."""

    def repeated(self, times: int) -> PackedBatch:
        """The batch with its rows `times` over, for as many trials that see the same rows."""

        def over(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else torch.cat([tensor] * times)

        return PackedBatch(
            torch.cat([self.input_ids] * times),
            torch.cat([self.labels] * times),
            self.rows * times,
            *map(over, (self.position_ids, self.classes, self.attention_mask, self.token_type_ids)),
        )


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Negative log-likelihoods of the label tokens, in nats; of rows with classes, those of the classes."""

    nll: Tensor
    """[n], float32 (float64 for a float64 base), on the device, trial after trial and row after row."""
    row_counts: np.ndarray
    """[R] int64: label tokens of every row; they add up to n."""


@dataclass(frozen=True, slots=True)
class LabelScores:
    """What is known of the label tokens of a batch: how likely they are, and whether they are the likeliest."""

    nll: Tensor
    """[n] on the device, in nats, trial after trial and row after row."""
    hit: Tensor
    """[n] bool: whether no other token is likelier at its place."""
    row_counts: np.ndarray
    """[R] int64: label tokens of every row; they add up to n."""


def padded(
    sets: Sequence[TokenizedDataset],
    chosen: Sequence[np.ndarray | Sequence[int]],
    length_of: Callable[[int], int] | None = None,
) -> PackedBatch:
    """The chosen rows of each trial's token set, padded to one length.

    Args:
        sets: A token set for each trial.
        chosen: The indices of its rows.
        length_of: The length from that of the longest row (`Padding`); by default that one itself.
    """
    ids = [tokens.input_ids[i] for tokens, rows in zip(sets, chosen, strict=True) for i in rows]
    labels = [tokens.labels[i] for tokens, rows in zip(sets, chosen, strict=True) for i in rows]
    longest = max(len(row) for row in ids)
    length = longest if length_of is None else length_of(longest)
    batch = PackedBatch(
        pad_rows(ids, length, sets[0].pad),
        pad_rows(labels, length, IGNORED),
        tuple(len(rows) for rows in chosen),
        _position_ids(sets, chosen, length),
    )
    if sets[0].classes is None:
        return batch
    types = [
        tokens.token_types[i] for tokens, rows in zip(sets, chosen, strict=True) for i in rows if tokens.token_types
    ]
    return replace(
        batch,
        classes=torch.from_numpy(
            np.concatenate([_classes(tokens)[rows] for tokens, rows in zip(sets, chosen, strict=True)])
        ),
        attention_mask=pad_rows([np.ones_like(row) for row in ids], length, 0),
        token_type_ids=pad_rows(types, length, 0) if types else None,
    )


def _classes(tokens: TokenizedDataset) -> np.ndarray:
    assert tokens.classes is not None, "all trials of a batch learn classes, or none does"
    return tokens.classes


def pad_rows(rows: Sequence[np.ndarray], length: int, value: int) -> Tensor:
    """[len(rows), length] int64, padded on the right with `value`."""
    padded = torch.full((len(rows), length), value, dtype=torch.int64)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.from_numpy(row)
    return padded


def pad_positions(rows: Sequence[np.ndarray | None], length: int) -> Tensor:
    """[len(rows), length] int64: positions, counted on through the padding; None is a row of one example."""
    padded = torch.arange(length).repeat(len(rows), 1)
    for index, row in enumerate(rows):
        if row is not None:
            padded[index, : len(row)] = torch.from_numpy(row)
            padded[index, len(row) :] += int(row[-1]) + 1 - len(row)
    return padded


def _position_ids(
    sets: Sequence[TokenizedDataset], chosen: Sequence[np.ndarray | Sequence[int]], length: int
) -> Tensor | None:
    """Positions that start anew with every example of a row; None where rows hold one each: no mask is needed then."""
    if all(tokens.positions is None for tokens in sets):
        return None
    rows = [
        tokens.positions[i] if tokens.positions else None for tokens, own in zip(sets, chosen, strict=True) for i in own
    ]
    return pad_positions(rows, length)


def largest_rows(train: TokenizedDataset, rows: int) -> np.ndarray:
    """The indices of the longest `rows` examples (or all, where there are fewer), the longest last."""
    by_length = sorted(range(len(train)), key=lambda index: len(train.input_ids[index]))
    return np.array(by_length[-rows:])
