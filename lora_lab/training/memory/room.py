"""Which trials fit into a device's memory side by side, by what is predicted of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.common.sizes import SIZE, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_lab.training.memory.predictor import MemoryPrediction


DEFAULT_SHARE = 0.92
"""Of what is free on a CUDA device; the rest is for fragmentation and what is not predicted."""


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """What the base and the trials of a pack may take together: so many bytes, or a share of what is free."""

    size_bytes: int | None = None
    percent: float | None = None
    """With neither, the default: 92% on a CUDA device, no limit on a CPU."""

    @classmethod
    def parse(cls, text: str | None) -> MemoryLimit:
        """What `--memory-limit` says: a size such as `20GB`, or a share such as `92%`; None for the default.

        Raises:
            InputError: `text` is neither.
        """
        if text is None:
            return cls()
        match = SIZE.fullmatch(text.strip())
        if match and match[2] == "%":
            percent = float(match[1])
            if not 0 < percent <= 100:
                raise InputError(f"--memory-limit: a share lies above 0% and up to 100%, but got {text}")
            return cls(percent=percent)
        try:
            return cls(size_bytes=parse_size(text))
        except InputError as error:
            raise InputError(f"--memory-limit: {error}, or a share such as 92%") from None

    @property
    def is_default(self) -> bool:
        """Whether nothing was said."""
        return self.size_bytes is None and self.percent is None

    def bytes_of(self, free_bytes: int | None) -> int | None:
        """The limit on a device, None for no limit.

        Args:
            free_bytes: What is free on the device, without CUDA's context; None on a CPU, where a share is one of the
                machine's whole memory.
        """
        if self.size_bytes is not None:
            return self.size_bytes
        if self.percent is not None:
            return int(self.percent / 100 * (machine_bytes() if free_bytes is None else free_bytes))
        return None if free_bytes is None else int(DEFAULT_SHARE * free_bytes)


DEFAULT_LIMIT = MemoryLimit()


def machine_bytes() -> int:
    """The machine's main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@dataclass(frozen=True, slots=True)
class Need:
    """What a trial needs in a pack."""

    shared: int
    """The part that all trials of the pack have in common: the base."""
    fixed: int
    """Its own part that stays what it is."""
    by_length: int
    """Its own part that grows with the length to which rows are padded, which is that of the longest in the pack."""
    length: int

    @classmethod
    def of(cls, predicted: MemoryPrediction, length: int) -> Need:
        """From a prediction at this length; CUDA's context is not counted, as it is not free anyway."""
        return cls(
            shared=predicted.shared - predicted.context,
            fixed=predicted.own - predicted.activations,
            by_length=predicted.activations,
            length=length,
        )


def pack_bytes(needs: Iterable[Need]) -> int:
    """What a pack of these trials needs at most; 0 for none."""
    trials = list(needs)
    if not trials:
        return 0
    longest = max(need.length for need in trials)
    own = sum(need.fixed + need.by_length * longest / need.length for need in trials)
    return max(need.shared for need in trials) + round(own)


def at_once(predicted: MemoryPrediction, length: int, limit_bytes: int) -> int:
    """How many trials like this one fit side by side, all of their rows of this length; 0 where not even one does."""
    need = Need.of(predicted, length)
    own = pack_bytes([need]) - need.shared
    return max(0, (limit_bytes - need.shared) // own)


class Room:
    """How much of a device's memory the trials in training take.

    Args:
        limit_bytes: What they and their base may take, None for all that they need; a trial alone too.
    """

    def __init__(self, limit_bytes: int | None) -> None:
        self.limit_bytes = self.pack_limit_bytes = limit_bytes
        self._needs: dict[int, Need] = {}

    def fits(self, need: Need | None) -> bool:
        """Whether one more trial fits; one whose need is not known does, until it turns out that it does not."""
        if need is None or self.pack_limit_bytes is None:
            return True
        return pack_bytes([*self._needs.values(), need]) <= self.pack_limit_bytes

    def take(self, number: int, need: Need | None) -> None:
        """A trial goes into the pack."""
        if need is not None:
            self._needs[number] = need

    def keep(self, numbers: Iterable[int]) -> None:
        """Only these trials are still in the pack."""
        staying = set(numbers)
        self._needs = {number: need for number, need in self._needs.items() if number in staying}

    def ran_out(self) -> None:
        """The device had less than was thought: from now on, no more than what the trials in the pack take."""
        in_use = pack_bytes(self._needs.values())
        if in_use:
            self.pack_limit_bytes = min(in_use, self.pack_limit_bytes or in_use)
