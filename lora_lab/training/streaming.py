"""Answers that are handed over token by token, of members that share forward passes and of those that cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.training.packed.linear import UnpackableError
from lora_lab.training.sampling import Chooser

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from lora_lab.training.packed.stream import Stream
    from lora_lab.training.reference.stream import ModelStream
    from lora_lab.training.sampling import Sampling


class Writing:
    """Answers in work.

    Args:
        shared: Those that share passes; None where none does.
        places: Of the rows of `shared`, among all answers.
        alone: The others, by place.
        samplings: How the tokens of each answer are chosen.
        model_stream: Goes on with an answer alone, by its place and the tokens [n] so far.
    """

    def __init__(
        self,
        shared: Stream | None,
        places: Sequence[int],
        alone: Mapping[int, ModelStream],
        *,
        samplings: Sequence[Sampling],
        model_stream: Callable[[int, np.ndarray], ModelStream],
    ) -> None:
        self._shared, self._places, self._alone = shared, list(places), dict(alone)
        self._choosers = [Chooser(sampling) for sampling in samplings]
        self._model_stream = model_stream

    def step(self) -> list[tuple[int, int]]:
        """One more token of every open answer: its place, and the token."""
        new: list[tuple[int, int]] = []
        if self._shared is not None:
            try:
                shared = self._shared.step(lambda row, logits: self._choosers[self._places[row]].choose(logits))
            except UnpackableError:  # on this base adapters cannot be told apart in one pass
                self._part(self._shared)
                shared = []
            new += [(self._places[row], token) for row, token in shared]
        return new + [(place, one.step(self._choosers[place].choose)) for place, one in self._alone.items()]

    def close(self, places: Sequence[int]) -> None:
        """These answers are finished."""
        if self._shared is not None:
            self._shared.close([row for row, place in enumerate(self._places) if place in places])
        for place in places:
            self._alone.pop(place, None)

    def _part(self, shared: Stream) -> None:
        """Go on with each answer alone."""
        self._alone |= {
            self._places[row]: self._model_stream(self._places[row], tokens) for row, tokens in shared.open_rows()
        }
        self._shared = None
