"""Trained adapters on one loaded base, asked side by side: how likely texts are to each, and what each answers.

Plain adapters, and the bare base, share every forward pass: each takes a part of the rows. What is more than A and B of
linear modules (DoRA, biases, saved modules, experts, LoftQ's base) is asked by `transformers` and `peft`, one after
the other, on the same weights.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lora_lab.common.activity import Activity, unwatched
from lora_lab.data.tokens import IGNORED
from lora_lab.training.base.stored_adapter import StoredAdapter
from lora_lab.training.batch import PackedBatch, pad_rows
from lora_lab.training.packed.generation import Decoder
from lora_lab.training.packed.linear import UnpackableError
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.packed.stream import Stream
from lora_lab.training.packed.trained import TrainedAdapter
from lora_lab.training.reference.generation import generated
from lora_lab.training.reference.losses import label_scores
from lora_lab.training.reference.model import sharing_copy, trained_model
from lora_lab.training.reference.stream import ModelStream
from lora_lab.training.streaming import Writing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from lora_lab.common.activity import Beat
    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.batch import LabelScores
    from lora_lab.training.generation import Answers, Greedy
    from lora_lab.training.sampling import Sampling


class Trained(NamedTuple):
    """An adapter on disk, and the trial that left it."""

    config: TrialConfig
    folder: Path


class Continuation(NamedTuple):
    """Tokens whose end is judged."""

    tokens: np.ndarray
    """[n] int64: a context of one token at least, and what follows it."""
    judged: int
    """How many of the last tokens are judged."""


class Likelihood(NamedTuple):
    """How likely a continuation is."""

    log_probability: float
    """Of all judged tokens together, in nats."""
    is_greedy: bool
    """Whether each of them is the most likely one at its place."""


class AdaptedBase:
    """A base with trained adapters on it.

    Args:
        base: Adapters are hooked behind its linear modules.
        members: Who is asked, in this order; None is the bare base.
        rows: Rows of each member in a forward pass.
        beat: Called before each batch.
    """

    def __init__(self, base: Base, members: Sequence[Trained | None], rows: int, beat: Beat = unwatched) -> None:
        self._members, self._rows, self._beat = members, rows, beat
        self._alone = replace(base, model=sharing_copy(base.model))  # before adapters are hooked behind its modules
        self._models: dict[int, Any] = {}
        self._packed = _packed(base, members)
        model = PackedModel(base)
        self._model, self._decoder = model, Decoder(model, base.device, base.compute_dtype, beat)
        self._limit = base.linears.limits.alike_up_to

    @property
    def alone(self) -> tuple[int, ...]:
        """The places of the members that share no forward pass with others."""
        return tuple(index for index in range(len(self._members)) if index not in self._packed)

    def likelihoods(self, rows: Sequence[Continuation]) -> list[list[Likelihood]]:
        """How likely the continuations are, for each member."""
        found: list[list[Likelihood]] = [[Likelihood(0.0, is_greedy=True)] * len(rows) for _ in self._members]
        for chosen in self._batches(rows):
            for member, scores in zip(found, self._scores([rows[index] for index in chosen]), strict=True):
                for index, score in zip(chosen, scores, strict=True):
                    member[index] = score
        return found

    def answers(self, prompts: Sequence[np.ndarray], greedy: Greedy) -> Answers:
        """What each member answers to each prompt: the new tokens [n] of one member after the other."""
        shared = self._answers_of_packed(prompts, greedy)
        return [
            generated(self._alone, self._model_of(index), prompts, greedy, rows=self._rows, beat=self._beat)
            if own is None
            else own
            for index, own in enumerate(shared)
        ]

    def stream(self, asked: Sequence[tuple[int, np.ndarray]], samplings: Sequence[Sampling]) -> Writing:
        """Begin answers that are handed over token by token.

        Args:
            asked: Who answers, by place among the members, and the token ids [n] of the prompt.
            samplings: How the tokens of each answer are chosen.
        """

        def alone(place: int, tokens: np.ndarray) -> ModelStream:
            return ModelStream(self._alone, self._model_of(asked[place][0]), tokens)

        places = [place for place, (member, _) in enumerate(asked) if member in self._packed]
        rows = [(self._packed[asked[place][0]], asked[place][1]) for place in places]
        keeps = self._decoder.keeps_what_it_read()
        return Writing(
            Stream(self._model, self._alone.device, rows, keeps=keeps) if rows else None,
            places,
            {place: alone(place, prompt) for place, (_, prompt) in enumerate(asked) if place not in places},
            samplings=samplings,
            model_stream=alone,
        )

    def _batches(self, rows: Sequence[Continuation]) -> Iterator[list[int]]:
        """Rows that go through the base together: the longest first, and none that changes how others are read."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index].tokens))
        groups: list[list[int]] = []
        for index in order:
            last = groups[-1] if groups else []
            if not last or len(last) == self._rows or self._is_long(rows[last[0]]) != self._is_long(rows[index]):
                groups.append([])
            groups[-1].append(index)
        for done, group in enumerate(groups):
            self._beat(Activity("likelihoods of continuations", done, len(groups)))
            yield group

    def _is_long(self, row: Continuation) -> bool:
        return self._limit is not None and len(row.tokens) - 1 > self._limit

    def _scores(self, rows: Sequence[Continuation]) -> list[list[Likelihood]]:
        """Of one batch, for each member."""
        batch, shared = _batch(rows), self._scores_of_packed(rows)
        return [
            _likelihoods(label_scores(self._alone, self._model_of(index), batch)) if own is None else own
            for index, own in enumerate(shared)
        ]

    def _scores_of_packed(self, rows: Sequence[Continuation]) -> list[list[Likelihood] | None]:
        """For each member, None for those that do not share the pass."""
        found: list[list[Likelihood] | None] = [None] * len(self._members)
        if self._packed:
            batch = _batch(rows).repeated(len(self._packed))
            try:
                all_rows = iter(_likelihoods(self._model.label_scores(batch, list(self._packed.values()))))
            except UnpackableError:
                self._part()
                return found
            for index in self._packed:
                found[index] = [next(all_rows) for _ in rows]
        return found

    def _answers_of_packed(self, prompts: Sequence[np.ndarray], greedy: Greedy) -> list[list[np.ndarray] | None]:
        found: list[list[np.ndarray] | None] = [None] * len(self._members)
        if self._packed:
            try:
                answers = self._decoder.answers(list(self._packed.values()), prompts, greedy, self._rows)
            except UnpackableError:
                self._part()
                return found
            for index, own in zip(self._packed, answers, strict=True):
                found[index] = own
        return found

    def _part(self) -> None:
        """Ask each member alone from now on: on this base adapters cannot be told apart in one pass."""
        self._packed = {}

    def _model_of(self, index: int) -> Any:
        """The model of a member that is asked alone."""
        if index not in self._models:
            member = self._members[index]
            self._models[index] = self._alone.model if member is None else trained_model(self._alone, *member)
        return self._models[index]


def _packed(base: Base, members: Sequence[Trained | None]) -> dict[int, TrainedAdapter | None]:
    """The members that share forward passes, by their place."""
    found: dict[int, TrainedAdapter | None] = {}
    for index, member in enumerate(members):
        if member is None:
            found[index] = None
            continue
        stored = StoredAdapter.read(member.folder)
        if (plain := stored.plain) is not None:
            found[index] = TrainedAdapter.of(plain, stored.scaling, base)
    return found


def _batch(rows: Sequence[Continuation]) -> PackedBatch:
    """The last token of a row is judged and not read: what would follow it is not asked."""
    length = max(len(row.tokens) for row in rows)
    labels = pad_rows([_labels(row) for row in rows], length, IGNORED)
    return PackedBatch(pad_rows([row.tokens[:-1] for row in rows], length - 1, 0), labels, (len(rows),))


def _labels(row: Continuation) -> np.ndarray:
    labels = row.tokens.copy()
    labels[: -row.judged] = IGNORED
    return labels


def _likelihoods(scores: LabelScores) -> list[Likelihood]:
    """Of each row, from what is known of its tokens."""
    counts = scores.row_counts.tolist()
    sums = [float(-own.sum()) for own in torch.split(scores.nll, counts)]
    greedy = [bool(own.all()) for own in torch.split(scores.hit, counts)]
    return [Likelihood(*one) for one in zip(sums, greedy, strict=True)]
