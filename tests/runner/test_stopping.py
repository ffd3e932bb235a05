"""Ctrl-C and SIGTERM as the process itself meets them."""

from __future__ import annotations

import gc
import os
import signal

import pytest

from lora_lab.common.activity import Activity, Interrupted
from lora_lab.runner.stopping import StopRequest

WORK = Activity("work")


@pytest.fixture
def stop():
    request = StopRequest()
    request.install()
    yield request
    request.uninstall()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_where_nothing_is_lost_the_first_signal_interrupts(stop, number, code):
    stop.beat(WORK)
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), number)
    assert stop.requested
    assert stop.exit_code == code
    with pytest.raises(Interrupted):
        stop.beat(WORK)


def test_a_finalizer_may_swallow_it_but_says_nothing_and_the_next_part_is_not_begun(stop, capsys):
    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    Finalized()
    gc.collect()
    assert "Traceback" not in capsys.readouterr().err
    with pytest.raises(Interrupted):
        stop.beat(WORK)


def test_a_thread_knows_of_signals_while_the_main_thread_is_busy(stop):
    with stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
    stop.wait(0.0)
    assert stop.arrived == [signal.SIGTERM]
    stop.wake()
    stop.wait(60.0)  # returns at once
    assert stop.arrived == [signal.SIGTERM]


def test_where_trials_train_the_first_signal_waits_and_the_second_interrupts(stop):
    with stop.deferred():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop.exit_code == 143, "the first one says why it ends"
