"""Studies in a real PostgreSQL server: opened by many at once, leased, and through outages."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from postgres_server import PASSWORD, PostgresServer
from runner.scripted import spec

from lora_lab.common.errors import InputError, StorageError, StudyLockedError
from lora_lab.results.folder import RunFolder
from lora_lab.runner.options import RunOptions
from lora_lab.runner.scripted import Script, falling_loss, scripted
from lora_lab.runner.session import SessionEnd, run_study
from lora_lab.runner.stopping import StopRequest
from lora_lab.search.patience import Patience
from lora_lab.search.store import open_store
from lora_lab.terminal.display import Display, PlainView
from lora_lab.training.memory.room import DEFAULT_LIMIT

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.study.settings import TrialConfig
    from lora_lab.study.spec import StudySpec

pytestmark = pytest.mark.servers
NO_MLFLOW = "http://127.0.0.1:9"
HOLDER = """
import sys, time
sys.path[:0] = sys.argv[2:]
from runner.scripted import spec
from lora_lab.search.store import open_store
store = open_store(spec(), sys.argv[1], lease=True)
print("held", flush=True)
time.sleep(600)
"""


def on(url: str, **sweep) -> StudySpec:
    return spec(**sweep).model_copy(update={"storage": url})


class Study:
    """A scripted study in a server, run in this process."""

    def __init__(self, root: Path, study: StudySpec, script: Script | None = None) -> None:
        self.spec, self.folder = study, RunFolder.of(study.study_name, root)
        self.script, self.stop, self.stream = script or Script(), StopRequest(), io.StringIO()

    def run(self, patience_s: float | None = None) -> SessionEnd:
        backend = scripted(self.folder, script=self.script)
        self.executor = backend.executor
        options = RunOptions(memory_limit=DEFAULT_LIMIT, tracking_uri=NO_MLFLOW, storage_patience_s=patience_s)
        return run_study(
            self.spec, self.folder, "", options,
            display=Display(PlainView(self.stream)), stop=self.stop, backend=backend,
        )  # fmt: skip

    @property
    def outcome(self) -> list[tuple]:
        """What every trial came to, read from the storage."""
        with open_store(self.spec, self.spec.storage, create=False) as store:
            return [(one.number, one.state, one.params, one.metrics, one.curve) for one in store.results()]

    def lines(self, pattern: str) -> list[str]:
        return [line for line in self.stream.getvalue().splitlines() if re.search(pattern, line)]


@contextmanager
def holder(url: str):
    """Another process that works on the study of `spec()`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, url, *sys.path], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_results_are_those_of_sqlite(url, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    server, file = Study(tmp_path / "a", on(url)), Study(tmp_path / "b", on(f"sqlite:///{tmp_path / 's.db'}"))
    assert server.run().complete
    assert file.run().complete
    assert server.outcome == file.outcome
    assert len(server.outcome) == 6
    assert not Study(tmp_path / "a", on(url)).run().ran
    for path in (tmp_path / "a").rglob("*"):
        assert path.is_dir() or b"canary" not in path.read_bytes(), path
    assert "canary" not in server.stream.getvalue()


def test_many_open_an_empty_database_at_once(url):
    start = threading.Barrier(4)

    def open_one(name: str) -> int:
        start.wait()
        with open_store(spec().model_copy(update={"study_name": name}), url) as store:
            return store.budget()[1]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(open_one, ["a", "b", "c", "c"])) == [6] * 4


def test_a_database_that_is_not_unicode_is_refused(postgres):
    postgres.sql("create database ascii encoding 'SQL_ASCII' template template0 lc_collate 'C' lc_ctype 'C'")
    with pytest.raises(StorageError, match=r"encoded in SQL_ASCII.*ENCODING 'UTF8'") as refused:
        open_store(spec(), postgres.url("ascii"))
    assert "canary" not in str(refused.value)


def test_a_wrong_password_is_named_without_it(postgres):
    with pytest.raises(StorageError, match=r"password authentication failed") as refused:
        open_store(spec(), postgres.url().replace("canary", "other-canary"))
    assert "canary" not in str(refused.value)
    assert "\n" not in str(refused.value)


# The lease


def test_a_second_coordinator_is_refused_until_the_first_is_killed(url, tmp_path):
    with holder(url) as first:
        by_whom = rf"study scripted \(process {first.pid} on {re.escape(socket.gethostname())}\)"
        with pytest.raises(StudyLockedError, match=by_whom):
            Study(tmp_path, on(url)).run()
        with open_store(spec(), url, create=False) as reader:
            assert reader.results() == []
        with open_store(spec().model_copy(update={"study_name": "other"}), url, lease=True):
            pass  # one study's lease is no other's
        first.send_signal(signal.SIGKILL)
        first.wait()
        taken_over = Study(tmp_path, on(url))
        assert taken_over.run().complete
        assert [number for number, *_ in taken_over.outcome] == list(range(6))


def test_a_second_coordinator_is_told_where_the_first_ones_files_are(url, tmp_path):
    refusals: list[str] = []

    def intrude(config: TrialConfig, epoch: int) -> float:
        if not refusals:
            with pytest.raises(StudyLockedError) as refused:
                Study(tmp_path / "second", on(url)).run()
            refusals.append(str(refused.value))
        return falling_loss(config, epoch)

    assert Study(tmp_path / "first", on(url), Script(loss=intrude)).run().complete
    assert f"process {os.getpid()} on {socket.gethostname()}" in refusals[0]
    assert f"{tmp_path / 'first' / 'scripted'} on {socket.gethostname()}" in refusals[0]


def test_a_start_from_another_run_folder_is_refused_while_the_first_ones_files_are_there(url, tmp_path):
    first = Study(tmp_path / "first", on(url, n_trials=2))
    assert first.run().complete
    with pytest.raises(InputError, match=rf"{re.escape(str(first.folder.root))} on .*--fresh"):
        Study(tmp_path / "second", on(url)).run()
    first.folder.root.rename(tmp_path / "moved")
    (tmp_path / "third").mkdir()
    (tmp_path / "moved").rename(tmp_path / "third" / "scripted")
    assert Study(tmp_path / "third", on(url, n_trials=4)).run().complete  # the folder itself may move
    (tmp_path / "third" / "scripted" / "events.jsonl").unlink()
    lost = Study(tmp_path / "fourth", on(url))
    assert lost.run().complete  # and where it is lost, nothing is gained by a refusal
    assert len(lost.outcome) == 6


def test_a_study_that_another_took_after_a_restart_of_the_server_is_left(server):
    with open_store(spec(), server.own_url, lease=True, patience=Patience(20, say=lambda _: None)) as store:
        store.record.keep_base_values({"eval_loss": 4.0})
        server.stop("immediate")
        server.start()
        store.record.keep_base_values({"eval_loss": 3.0})  # the lock is lost, and was taken again
        with pytest.raises(StudyLockedError):
            open_store(spec(), server.own_url, lease=True)
        server.stop("immediate")
        server.start()
        with open_store(spec(), server.own_url, lease=True) as usurper:
            with pytest.raises(StudyLockedError, match=rf"process {os.getpid()}"):
                store.record.keep_base_values({"eval_loss": 2.0})
            assert usurper.record.base_values() == {"eval_loss": 3.0}


# Outages


class Stops:
    """A script that stops the server at a call, and starts it some seconds later."""

    def __init__(self, server: PostgresServer, at: int, away_s: float) -> None:
        self._server, self._at, self._away_s = server, at, away_s
        self.calls = 0
        self.timer: threading.Timer | None = None

    def loss(self, config: TrialConfig, epoch: int) -> float:
        self.calls += 1
        if self.calls == self._at:
            self._server.stop("immediate")
            self.timer = threading.Timer(self._away_s, self._server.start)
            self.timer.start()
        return falling_loss(config, epoch)


def undisturbed(tmp_path: Path) -> list[tuple]:
    study = Study(tmp_path / "undisturbed", on(f"sqlite:///{tmp_path / 's.db'}"))
    assert study.run().complete
    return study.outcome


AWAY_S = [
    2.5,
    pytest.param(5, marks=pytest.mark.slow),
    pytest.param(60, marks=pytest.mark.slow),
    pytest.param(150, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("away_s", AWAY_S)
def test_an_outage_is_waited_out_with_one_line_at_each_end(server, tmp_path, away_s):
    stops = Stops(server, at=7, away_s=away_s)
    study = Study(tmp_path / "study", on(server.own_url), Script(loss=stops.loss))
    assert study.run().complete
    assert study.outcome == undisturbed(tmp_path)
    assert len(study.executor.trained_epochs) == len(set(study.executor.trained_epochs)) == 18, "nothing twice"
    [begin], [end] = study.lines("is away"), study.lines("is back")
    assert begin.startswith(f"storage postgresql+psycopg://***@127.0.0.1:{server.port}/d")
    assert re.search(r"is back after \d+ s", end)
    assert "canary" not in study.stream.getvalue()
    assert PASSWORD not in study.stream.getvalue()


def test_an_outage_that_outlasts_the_patience_ends_in_one_line_and_the_study_goes_on_later(server, tmp_path):
    stops = Stops(server, at=7, away_s=600)
    study = Study(tmp_path / "study", on(server.own_url), Script(loss=stops.loss))
    with pytest.raises(StorageError, match=r"for [12] s; nothing told so far is lost"):
        study.run(patience_s=1.5)
    stops.timer.cancel()
    server.start()
    again = Study(tmp_path / "study", on(server.own_url))
    assert again.run().complete
    assert again.outcome == undisturbed(tmp_path)


def test_ctrl_c_ends_the_wait(server, tmp_path):
    stops = Stops(server, at=7, away_s=600)
    study = Study(tmp_path / "study", on(server.own_url), Script(loss=stops.loss))

    def interrupt() -> None:
        while not study.lines("is away"):
            time.sleep(0.05)
        study.stop.signal = signal.SIGINT

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    end = study.run()
    stops.timer.cancel()
    assert not end.complete
    assert study.lines("was not waited for any longer")
    server.start()
    again = Study(tmp_path / "study", on(server.own_url))
    assert again.run().complete
    assert again.outcome == undisturbed(tmp_path)


def test_trials_train_on_while_none_can_be_asked_for(server, tmp_path):
    """The first of two trials ends, and the server is away when its place could be filled."""
    with open_store(on(server.own_url), server.own_url, lease=True, patience=Patience(say=lambda _: None)) as store:
        assert store.answers
        server.stop("immediate")
        began = time.monotonic()
        assert not any(store.answers for _ in range(1000)), "it does not answer, and is not waited for"
        assert time.monotonic() - began < 60
        server.start()
        while not store.answers:
            time.sleep(0.05)
        store.record.keep_base_values({"eval_loss": 4.0})
