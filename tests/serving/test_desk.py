"""The desk with an author that follows a script: who is answered when, and how answers end."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from lora_lab.serving.desk import BusyError, Desk, Ended, Failed, Wish

END = 0


class Scripted:
    """Member n writes the letter n places after `a`, as often as its prompt is long, and then ends."""

    ends = frozenset({END})

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def text(self, tokens) -> str:
        return "".join(map(chr, tokens))

    def begin(self, wishes):
        if any(wish.member == 9 for wish in wishes):
            raise RuntimeError("no member 9")
        self.begun.append(len(wishes))
        return Steps(wishes, self.gate)


class Steps:
    def __init__(self, wishes, gate) -> None:
        self.left = {place: [ord("a") + wish.member] * len(wish.prompt) + [END] for place, wish in enumerate(wishes)}
        self.gate, self.closed = gate, []

    def step(self):
        assert self.gate.wait(10)
        return [(place, tokens.pop(0)) for place, tokens in self.left.items()]

    def close(self, places):
        for place in places:
            del self.left[place]


@pytest.fixture
def author():
    return Scripted()


@pytest.fixture
def desk(author):
    desk = Desk(author)
    yield desk
    desk.close()


def wish(member: int, length: int = 3, max_tokens: int = 10, **more) -> Wish:
    return Wish(np.zeros(length, np.int64), member, max_tokens, **more)


def whole(answer) -> tuple[str, object]:
    *said, end = list(answer)
    return "".join(said), end


def test_answers_end_by_their_token_their_length_and_their_stop(desk):
    asked = [wish(0), wish(1, 5, 2), wish(2, 5, stop=("cc",)), wish(3, 1)]
    answers = [desk.ask(one) for one in asked]
    assert [whole(answer) for answer in answers] == [
        ("aaa", Ended("stop", 3)),
        ("bb", Ended("length", 2)),
        ("", Ended("stop", 2)),
        ("d", Ended("stop", 1)),
    ]


def test_questions_that_wait_are_answered_together_and_later_ones_beside_them(author, desk):
    author.gate.clear()
    first = desk.ask(wish(0, 50, 100))
    while not author.begun:
        pass
    later = [desk.ask(wish(1, 2)), desk.ask(wish(2, 2))]
    author.gate.set()
    assert [whole(answer)[0] for answer in later] == ["bb", "cc"]
    assert whole(first) == ("a" * 50, Ended("stop", 50))
    assert author.begun == [1, 2]


def test_one_who_goes_away_is_answered_no_more(author, desk):
    author.gate.clear()
    gone, stays = desk.ask(wish(0, 5000, 10_000)), desk.ask(wish(1, 4))
    gone.cancelled = True
    author.gate.set()
    assert whole(stays)[0] == "bbbb"
    assert gone.said.count <= 2


def test_what_fails_is_told_and_the_desk_goes_on(desk):
    [failed] = list(desk.ask(wish(9)))
    assert failed == Failed("RuntimeError: no member 9")
    assert whole(desk.ask(wish(1)))[0] == "bbb"


def test_at_the_end_everybody_is_told(author):
    desk = Desk(author)
    answers = [desk.ask(wish(number, 10**6, 10**6)) for number in range(3)]
    desk.close()
    for answer in answers:
        assert whole(answer)[1].reason == "cancelled"
    with pytest.raises(BusyError):
        desk.ask(wish(0))
