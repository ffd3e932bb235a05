"""The watch over a session, looked through by hand: its clock goes on when told, and no process ends."""

from __future__ import annotations

import signal

import pytest

from lora_lab.common.activity import TRAINING, Activity, Interrupted
from lora_lab.runner.slowness import Usage
from lora_lab.runner.stopping import StopRequest
from lora_lab.runner.watch import Watch
from lora_lab.terminal.display import Display
from lora_lab.terminal.messages import Heartbeat, Note, SessionOver, Working


class Session:
    """A watch, and all that it tells and does."""

    def __init__(self) -> None:
        self.now_s, self.waited_s, self.faults = 100.0, 0.0, 0
        self.told, self.left = [], []
        self.stop = StopRequest()
        self.watch = Watch(
            Display(self, self.clock),
            self.stop,
            clock=self.clock,
            usage=lambda: Usage(self.now_s, self.waited_s, self.faults),
            leave=self.left.append,
        )

    def clock(self) -> float:
        return self.now_s

    def show(self, message, _progress) -> None:
        self.told.append(message)

    def step(self, seconds: float) -> None:
        self.watch.beat(TRAINING)
        self.now_s += seconds

    def look_after(self, seconds: float) -> None:
        self.now_s += seconds
        self.watch.look()

    def signal(self, number: signal.Signals) -> None:
        self.stop.arrived.append(number)
        self.watch.look()

    def notes(self) -> list[str]:
        return [message.text for message in self.told if isinstance(message, Note)]


@pytest.fixture
def session():
    return Session()


# Where it is


def test_every_look_tells_that_the_process_lives(session):
    for _ in range(3):
        session.look_after(1.0)
    assert session.told == [Heartbeat("running")] * 3


def test_parts_are_told_a_few_times_a_second_and_each_new_work_at_once(session):
    for done in range(10):
        session.watch.beat(Activity("evaluation", done, 10))
        session.now_s += 0.1
    session.watch.beat(TRAINING)
    shown = [message.activity.done for message in session.told if isinstance(message, Working)]
    assert shown == [0, 3, 6, 9, 0]
    assert session.told[-1] == Working(TRAINING)


def test_work_is_left_where_the_session_is_over(session):
    session.watch.beat(TRAINING)
    with session.watch.until(lambda: session.now_s > 200):
        session.watch.beat(TRAINING)
        session.now_s = 201.0
        with pytest.raises(Interrupted):
            session.watch.beat(TRAINING)
    session.watch.beat(TRAINING)
    session.stop.signal = signal.SIGINT
    with pytest.raises(Interrupted):
        session.watch.beat(TRAINING)


def test_the_thread_looks_and_ends_with_the_session(session):
    with session.watch:
        while Heartbeat("running") not in session.told:
            pass
    assert not session.watch._thread.is_alive()
    assert session.told[-1] == Heartbeat("ended")


# Slow steps


def test_a_slow_step_is_told_once_while_it_runs_and_why(session):
    for _ in range(9):
        session.step(1.0)
    session.step(0.0)
    session.look_after(0.5)
    session.waited_s += 15
    session.look_after(18.5)
    assert session.notes() == []
    for _ in range(5):
        session.look_after(1.0)
    [note] = session.notes()
    assert note.startswith("slow: a step takes 20 s so far, usually 1.0 s; other processes have the CPU: it waited for")
    assert "77% of the time" in note


def test_the_next_slow_step_is_told_again(session):
    for _ in range(9):
        session.step(1.0)
    for _ in range(2):
        session.step(0.0)
        session.look_after(0.0)
        session.faults += 10_000
        session.look_after(25.0)
    notes = session.notes()
    assert len(notes) == 2
    assert all("10,000 pages were read back from disk" in note for note in notes)


def test_short_steps_and_unknown_ones_are_not_slow(session):
    for _ in range(9):
        session.step(0.01)
    session.step(0.0)
    session.look_after(9.0)  # 900 times the median, but who waits for nine seconds
    session.watch.beat(Activity("evaluation", 0, 3))
    session.look_after(500.0)  # nobody knows how long these take
    assert session.notes() == []


def test_parts_of_one_work_are_no_measure_for_those_of_another(session):
    for done in range(9):
        session.watch.beat(Activity("memory probe", done))
        session.now_s += 0.1
    session.watch.beat(Activity("evaluation", 0, 3))
    session.look_after(30.0)
    assert session.notes() == []


# Contention


def train(session, seconds: int, waited: float) -> None:
    """Steps of half a second, of which the process waits a part for a core."""
    for _ in range(2 * seconds):
        session.watch.beat(TRAINING)
        session.waited_s += waited / 2
        session.look_after(0.5)


def test_what_neighbors_cost_is_told_once(session, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    train(session, 29, waited=0.5)
    assert session.notes() == []
    train(session, 90, waited=0.5)
    [note] = session.notes()
    assert "training waited for a core 50% of the time" in note
    assert "OMP_NUM_THREADS=1" in note


def test_contention_counts_in_training_only_and_over_the_newest_time(session, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    train(session, 20, waited=0.5)
    session.watch.beat(Activity("evaluation", 0, 3))
    session.look_after(1.0)
    train(session, 15, waited=0.5)
    assert session.notes() == []
    train(session, 45, waited=0.0)
    assert session.notes() == []
    train(session, 90, waited=0.5)
    assert len(session.notes()) == 1


# Ending


def test_ctrl_c_is_answered_with_what_it_waits_for(session):
    for _ in range(3):
        session.step(2.0)
    with session.stop.deferred():
        session.signal(signal.SIGINT)
        session.look_after(3600.0)
    [note] = session.notes()
    assert note.startswith(
        "Ctrl-C: leaving when the step under way is over (usually 2.0 s) and checkpoints are written"
    )
    assert session.told[-1] == Heartbeat("stopping")
    assert session.left == [], "a user decides how long to wait"


def test_a_long_work_is_named(session):
    session.watch.beat(Activity("evaluation of trial 3", 4, 80))
    with session.stop.deferred():
        session.signal(signal.SIGTERM)
    assert "leaving when what is under way (evaluation of trial 3) is over" in session.notes()[0]
    assert "after 25 s it leaves anyway" in session.notes()[0]


@pytest.mark.parametrize("deferred", [False, True])
def test_sigterm_is_met_within_its_grace(session, deferred):
    with session.stop.deferred(deferred=deferred):
        session.signal(signal.SIGTERM)
        session.look_after(9.0)
        assert session.left == []
        session.look_after(1.0)
        assert session.left == ([] if deferred else [143]), "where nothing is to be saved it need not take so long"
        session.look_after(15.0)
    assert session.left[-1] == 143
    assert SessionOver() in session.told


def test_a_second_signal_ends_the_process_whatever_the_main_thread_does(session):
    with session.stop.deferred():
        session.signal(signal.SIGINT)
        session.look_after(60.0)
        session.signal(signal.SIGINT)
        assert session.left == [], "Python may leave in order"
        session.look_after(3.0)
    assert session.left == [130]


def test_what_comes_after_the_checkpoints_has_time_of_its_own(session):
    with session.stop.deferred():
        session.signal(signal.SIGINT)
        session.look_after(60.0)
    session.look_after(1.0)
    session.look_after(8.0)
    assert session.left == []
    session.look_after(2.0)
    assert session.left == [130]
