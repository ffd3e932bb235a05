"""SIGTERM and Ctrl-C: a checkpoint, the command to go on, the exit code of shells, and then the same result."""

from __future__ import annotations

import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sweep_process import study

if TYPE_CHECKING:
    from collections.abc import Callable

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
GRID = {
    "sampler": "grid",
    "pruner": "none",
    "n_trials": None,
    "parameters": {"r": {"values": [2, 8]}, "learning_rate": {"values": [1e-3, 1e-2]}},
}


@pytest.fixture
def grid(lab):
    training = {"num_train_epochs": 3}
    lab.write(study(training=training, sweep=GRID))
    return lab


def to_go_on(err: str) -> list[str]:
    """The words of the printed command."""
    line = next(line for line in err.splitlines() if line.startswith("To go on: "))
    words = shlex.split(line.removeprefix("To go on: "))
    assert words[:4] == ["python", "-m", "lora_lab.sweep", "study.yaml"]
    return words[4:]


def stop(command, number) -> list[str] | None:
    """Stop a command; the words to go on with, None where it had ended already."""
    command.signal(number)
    ended = command.end()
    if ended.code == 0:
        return None
    assert ended.code == EXIT_CODES[number], ended.err
    assert "Traceback" not in ended.err
    return to_go_on(ended.err)


def same_result(lab, name: str) -> None:
    control, results = lab.results("control"), lab.results(name)
    assert sorted(results) == sorted(control)
    for number, one in results.items():
        assert (one.state, one.config) == (control[number].state, control[number].config)
        assert one.eval_loss == pytest.approx(control[number].eval_loss, abs=1e-4)
        assert one.metrics["steps"] == control[number].metrics["steps"]


def stops(lab, count: int, seed: int) -> None:
    numbers = random.Random(seed)
    began = time.monotonic()
    assert lab.sweep("--set", "study_name=control").code == 0
    whole_s = time.monotonic() - began
    stopped = rounds = 0
    while stopped < count:
        rounds += 1
        words = ["--set", f"study_name=round-{rounds}"]
        while stopped < count:
            command = lab.start(*words)
            if rounds == 1 and stopped == 0:
                command.wait_for("trial 0 epoch 1")
            else:
                command.wait_for("4 trials")  # the signals are in hand
                command.process.join(numbers.uniform(0.0, 0.6 * whole_s))
            again = stop(command, numbers.choice([signal.SIGTERM, signal.SIGINT]))
            if again is None:
                break
            assert again == words
            stopped += 1
        assert lab.sweep(*words).code == 0
        same_result(lab, f"round-{rounds}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "seed"), [(2, 1), pytest.param(30, 2, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])]
)
def test_stopped_at_random_moments_it_goes_on_to_the_same_result(grid, count, seed):
    stops(grid, count, seed)


@pytest.mark.slow
def test_a_stopped_fresh_study_goes_on_under_its_new_name(grid):
    grid.run_folder().mkdir(parents=True)
    command = grid.start("--fresh")
    command.wait_for("trial 0 epoch 1")
    words = stop(command, signal.SIGTERM)
    assert words == ["--set", "study_name=tiny-2"]
    assert grid.sweep(*words).code == 0
    assert len(grid.results("tiny-2")) == 4
    assert len(list((grid.folder / "runs").iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.faults)])
def test_a_second_signal_ends_at_once(grid, number):
    command = grid.start()
    command.wait_for("trial 0 epoch 1")
    command.signal(number)
    command.signal(number)
    ended = command.end()
    assert ended.code in (EXIT_CODES[number], 130)
    assert "Traceback" not in ended.err


def takes_signals(process: subprocess.Popen) -> bool:
    """Whether a process has taken SIGTERM over, as Linux knows it; Python takes SIGINT by itself from the start."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def maps(library: str) -> Callable[[subprocess.Popen], bool]:
    """Whether a process that takes signals has begun to load a library."""

    def mapped(process: subprocess.Popen) -> bool:
        return takes_signals(process) and library in Path(f"/proc/{process.pid}/maps").read_text()

    return mapped


def said_that_it_loads(process: subprocess.Popen) -> bool:
    return process.stdout.readline().startswith("loading ")


MOMENTS = {
    "signals are taken": takes_signals,
    "pydantic": maps("pydantic_core"),
    "numpy": maps("numpy"),
    "sqlite": maps("_sqlite3"),
    "loading is said": said_that_it_loads,
    "torch": maps("libtorch"),
    "tokenizers": maps("tokenizers"),
}


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("loading is said", signal.SIGTERM),
        *(pytest.param(moment, number, marks=pytest.mark.faults) for moment in MOMENTS for number in EXIT_CODES),
    ],
)
def test_stopped_while_it_loads(grid, moment, number):
    """A process of its own, so that the imports are part of it."""
    words = [sys.executable, "-m", "lora_lab.sweep", "study.yaml"]
    with subprocess.Popen(words, cwd=grid.folder, stdout=-1, stderr=-1, text=True) as process:
        while not MOMENTS[moment](process):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate()
    assert process.returncode == EXIT_CODES[number], err
    assert "Traceback" not in err
    assert to_go_on(err) == []
    assert grid.sweep().code == 0
    assert sorted(grid.results()) == list(range(4))
