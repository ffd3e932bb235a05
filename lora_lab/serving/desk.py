"""The one thread that computes: it takes questions from a queue and writes all open answers, a token each in turn.

Questions that wait at the same moment share their forward passes, whichever adapters they are for; those that come
while answers are being written begin at once beside them.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from lora_lab.serving.said import Said

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

MOST_OPEN = 64
"""Answers in writing; more questions wait."""
MOST_WAITING = 256
MOST_APART = 16
"""Tokens by which the prompts of answers that share their passes differ."""
PATIENCE_S = 0.2
"""The thread looks this often whether it is to end."""

Reason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Wish:
    """How an answer is to be written."""

    prompt: np.ndarray
    """[n] int64: the token ids that it goes on from."""
    member: int
    """Who answers, by place."""
    max_tokens: int
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


class Ended(NamedTuple):
    """The last word on an answer."""

    reason: Reason
    tokens: int
    """Of the answer."""


class Failed(NamedTuple):
    """It could not be written."""

    text: str


Piece = str | Ended | Failed


class Writing(Protocol):
    """Answers in work, which share forward passes."""

    def step(self) -> Sequence[tuple[int, int]]:
        """One more token of every open answer: its place among the wishes, and the token."""

    def close(self, places: Sequence[int]) -> None:
        """These answers are finished."""


class Author(Protocol):
    """Writes answers: a base with its adapters."""

    @property
    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""

    def begin(self, wishes: Sequence[Wish]) -> Writing:
        """Begin answers that share their passes."""

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens say, without special tokens."""


class BusyError(Exception):
    """So many questions wait that no more are taken."""


@dataclass(eq=False)
class Answer:
    """An answer as the one who asked sees it."""

    wish: Wish
    said: Said
    pieces: queue.SimpleQueue[Piece] = field(default_factory=queue.SimpleQueue)
    cancelled: bool = False

    def __iter__(self) -> Iterator[Piece]:
        """Its text piece by piece, and at last how it ended."""
        while True:
            piece = self.pieces.get()
            yield piece
            if not isinstance(piece, str):
                return


class Desk:
    """Takes questions and answers them until it is closed.

    Args:
        author: Writes the answers; used by one thread alone.
    """

    def __init__(self, author: Author) -> None:
        self._author = author
        self._waiting: deque[Answer] = deque()
        self._news = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._thread.start()

    def ask(self, wish: Wish) -> Answer:
        """Put a question into the queue.

        Raises:
            BusyError: the queue is full, or the desk is closed.
        """
        answer = Answer(wish, Said(self._author.text, wish.stop))
        with self._news:
            if self._closed or len(self._waiting) >= MOST_WAITING:
                raise BusyError
            self._waiting.append(answer)
            self._news.notify()
        return answer

    def close(self) -> None:
        """End at once; what is open ends as cancelled."""
        with self._news:
            self._closed = True
            self._news.notify()

    def _work(self) -> None:
        at_work: list[_Group] = []
        while True:
            with self._news:
                while not (self._closed or self._waiting or at_work):
                    self._news.wait(PATIENCE_S)
                if self._closed:
                    left = [*self._waiting, *(answer for group in at_work for answer in group.open.values())]
                    break
                room = MOST_OPEN - sum(len(group.open) for group in at_work)
                taken = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            for together in _alike(taken):
                at_work += _begun(self._author, together)
            for group in at_work:
                group.step()
            at_work = [group for group in at_work if group.open]
        for answer in left:
            answer.pieces.put(Ended("cancelled", answer.said.count))


class _Group:
    """Answers that began together."""

    def __init__(self, author: Author, answers: Sequence[Answer]) -> None:
        self._ends = author.ends
        self.open = dict(enumerate(answers))
        self._writing = author.begin([answer.wish for answer in answers])

    def step(self) -> None:
        """Write one more token of each."""
        try:
            done = [place for place, token in self._writing.step() if self._take(place, token)]
            done += [place for place, answer in self.open.items() if answer.cancelled and place not in done]
            if done:
                self._writing.close(done)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the others are to be answered
            done = list(self.open)
            for answer in self.open.values():
                answer.pieces.put(Failed(" ".join(f"{type(error).__name__}: {error}".split())[:300]))
        for place in done:
            del self.open[place]

    def _take(self, place: int, token: int) -> bool:
        """Hand a token on; whether it was the last one."""
        answer = self.open[place]
        if token in self._ends:
            return self._end(answer, "stop")
        if text := answer.said.add(token):
            answer.pieces.put(text)
        if answer.said.stopped:
            return self._end(answer, "stop")
        if answer.said.count >= answer.wish.max_tokens:
            return self._end(answer, "length")
        return False

    def _end(self, answer: Answer, reason: Reason) -> bool:
        if rest := answer.said.rest():
            answer.pieces.put(rest)
        answer.pieces.put(Ended(reason, answer.said.count))
        return True


def _alike(answers: Sequence[Answer]) -> Iterator[list[Answer]]:
    """Those whose prompts are of similar length: in a shared pass the shorter one waits for the longer."""
    group: list[Answer] = []
    for answer in sorted(answers, key=lambda answer: len(answer.wish.prompt)):
        if group and len(answer.wish.prompt) - len(group[0].wish.prompt) > MOST_APART:
            yield group
            group = []
        group.append(answer)
    if group:
        yield group


def _begun(author: Author, answers: Sequence[Answer]) -> list[_Group]:
    try:
        return [_Group(author, answers)]
    except Exception as error:  # noqa: BLE001 -- as above
        for answer in answers:
            answer.pieces.put(Failed(" ".join(f"{type(error).__name__}: {error}".split())[:300]))
        return []
