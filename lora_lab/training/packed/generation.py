"""Greedy decoding of many adapters at once: rows of several slots share every forward pass of the frozen base.

No row is padded. All rows of a batch begin at their first token: the first pass reads as many tokens as the shortest
prompt has, and from then on a row is given the next token of its own prompt as long as there is one, while its
neighbors are given what they have just generated. So no mask is needed, every token has the position that it has alone,
and whatever a base keeps of the tokens that it has read (keys and values, those of a window, recurrent states) is
that of the row alone. Prompts of similar length are taken together, so that little time passes between them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_lab.common.activity import unwatched
from lora_lab.training.generation import side_by_side
from lora_lab.training.packed.linear import UnpackableError
from lora_lab.training.packed.model import NOTHING_KEPT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lora_lab.common.activity import Beat
    from lora_lab.training.generation import Answers, Greedy
    from lora_lab.training.packed.linear import Adapter
    from lora_lab.training.packed.model import PackedModel

PROBE = 6
"""Tokens of the rows with which it is tried whether a base goes on from what it has kept."""
BROKEN = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)
"""What bases raise whose cache cannot be continued, or cannot lose rows."""
MOST_APART = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Of the spread of logits: further apart than rounding brings them, by the dtype of the computation. Bamba's cache is
off by 0.03 (transformers 5.23), a wrong one by all of it."""
MOST_APART_IN_HALF = 0.1
"""The same in half precision."""


class Decoder:
    """Answers prompts with the adapters of slots.

    Args:
        model: The base with adapters behind its linear modules.
        device: Where token ids are put.
        dtype: Of the base's computation.
        beat: Called before each batch of prompts.
    """

    def __init__(self, model: PackedModel, device: torch.device, dtype: torch.dtype, beat: Beat = unwatched) -> None:
        self._model, self._device, self._beat = model, device, beat
        self._most_apart = MOST_APART.get(dtype, MOST_APART_IN_HALF)
        self._goes_on: bool | None = None

    @torch.no_grad()
    def answers(
        self, slots: Sequence[Adapter | None], prompts: Sequence[np.ndarray], greedy: Greedy, rows_per_slot: int
    ) -> Answers:
        """What each slot answers to each prompt; a slot of None is the bare base.

        Args:
            slots: Slots of a block have to stand side by side, as in a training step.
            prompts: Token ids [n] of each, at least one.
            greedy: When an answer ends.
            rows_per_slot: Prompts that each slot answers at once.
        """
        answers: Answers = [[np.zeros(0, np.int64)] * len(prompts) for _ in slots]
        lengths = [len(prompt) for prompt in prompts]
        # A batch is finished so many tokens later as its prompts differ; apart, it would take as many as an answer has.
        for chosen in side_by_side(lengths, rows_per_slot, greedy.max_new_tokens, self._beat):
            asked = [prompts[index] for index in chosen]
            try:
                found = iter(self._batch(slots, asked, greedy))
            except UnpackableError:  # some (DeepSeek's latent attention) project all that they keep anew at every step
                if not self._goes_on:
                    raise
                self._goes_on = False
                found = iter(self._batch(slots, asked, greedy))
            for own in answers:
                for index in chosen:
                    own[index] = next(found)
        return answers

    def _batch(
        self, slots: Sequence[Adapter | None], prompts: Sequence[np.ndarray], greedy: Greedy
    ) -> list[np.ndarray]:
        """The answers of the first slot to all prompts, of the second, and so on."""
        rows = _Rows([*prompts] * len(slots), greedy, self._device)
        owner = np.repeat(np.arange(len(slots)), len(prompts))
        keeps, kept = self.keeps_what_it_read(), NOTHING_KEPT
        ids = rows.read
        while True:
            counts = np.bincount(owner[rows.open], minlength=len(slots))
            present = [index for index, count in enumerate(counts) if count]
            logits, kept = self._model.next_logits(
                ids, [slots[index] for index in present], [int(counts[index]) for index in present], kept, keep=keeps
            )
            staying = rows.take(logits)
            if not len(rows.open):
                return rows.answers()
            if staying is not None:
                for cache in kept.values():
                    cache.reorder_cache(staying)
            ids = rows.newest if keeps else rows.read

    def keeps_what_it_read(self) -> bool:
        """Whether the base goes on from what it has kept as if it read all again, also after rows have left."""
        if self._goes_on is None:
            self._goes_on = self._try_to_go_on()
        return self._goes_on

    def _try_to_go_on(self) -> bool:
        ids = torch.arange(1, 1 + 2 * PROBE, device=self._device).view(2, PROBE)
        whole, _ = self._model.next_logits(ids, [None], [2], NOTHING_KEPT, keep=False)
        try:
            _, kept = self._model.next_logits(ids[:, :-2], [None], [2], NOTHING_KEPT, keep=True)
            if not kept:
                return False
            _, kept = self._model.next_logits(ids[:, -2:-1], [None], [2], kept, keep=True)
            for cache in kept.values():
                cache.reorder_cache(torch.ones(1, dtype=torch.int64, device=self._device))
            last, _ = self._model.next_logits(ids[1:, -1:], [None], [1], kept, keep=True)
        except BROKEN:
            return False
        finally:
            self._model.next_logits(
                ids, [None], [2], NOTHING_KEPT, keep=False
            )  # some keep what they read in their modules
        return bool((last[0] - whole[1]).abs().max() <= self._most_apart * whole[1].std())


class _Rows:
    """The rows of a batch: what each has read, and which still generate."""

    def __init__(self, prompts: Sequence[np.ndarray], greedy: Greedy, device: torch.device) -> None:
        self._prompt_lengths = np.array([len(prompt) for prompt in prompts])
        self._greedy, self._device = greedy, device
        self._tokens = torch.zeros(
            (len(prompts), int(self._prompt_lengths.max()) + greedy.max_new_tokens), dtype=torch.int64
        )
        for row, prompt in zip(self._tokens, prompts, strict=True):
            row[: len(prompt)] = torch.from_numpy(np.asarray(prompt, np.int64))
        self._tokens = self._tokens.to(device)
        self._ends = np.zeros(len(prompts), np.int64)
        self._stop = torch.tensor(sorted(greedy.stop), dtype=torch.int64, device=device)
        self._seen = int(self._prompt_lengths.min())
        self.open = np.arange(len(prompts))
        """The rows that are not finished."""

    @property
    def read(self) -> Tensor:
        """[R, S]: all tokens of the open rows up to here."""
        return self._tokens[self._index(self.open), : self._seen]

    @property
    def newest(self) -> Tensor:
        """[R, 1]: the last token of the open rows."""
        return self._tokens[self._index(self.open), self._seen - 1 : self._seen]

    def take(self, logits: Tensor) -> Tensor | None:
        """Give every open row its next token, and close those that are finished.

        Args:
            logits: [R, vocabulary] behind the last token of the open rows.

        Returns:
            Which of the rows that were open still are, as indices [n] on the device; None where all are.
        """
        index = self._index(self.open)
        generates = self._prompt_lengths[self.open] <= self._seen
        token = logits.argmax(dim=-1).to(self._device)
        if not generates.all():
            token = torch.where(torch.from_numpy(generates).to(self._device), token, self._tokens[index, self._seen])
        self._tokens[index, self._seen] = token
        self._seen += 1
        stopped = torch.isin(token, self._stop).cpu().numpy()
        spent = self._seen - self._prompt_lengths[self.open] >= self._greedy.max_new_tokens
        finished = generates & (stopped | spent | self._said(generates))
        if not finished.any():
            return None
        self._ends[self.open[finished]] = self._seen
        self.open = self.open[~finished]
        return self._index(np.flatnonzero(~finished))

    def _said(self, generates: np.ndarray) -> np.ndarray:
        """Which of the open rows have written a text that ends an answer."""
        said = np.zeros(len(self.open), dtype=bool)
        if self._greedy.until is None:
            return said
        for place in np.flatnonzero(generates):
            row = self.open[place]
            said[place] = self._greedy.until.ends(self._tokens[row, self._prompt_lengths[row] : self._seen].tolist())
        return said

    def answers(self) -> list[np.ndarray]:
        """The new tokens of every row."""
        tokens = self._tokens.cpu().numpy()
        return [
            row[length:end].copy() for row, length, end in zip(tokens, self._prompt_lengths, self._ends, strict=True)
        ]

    def _index(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self._device)
