"""Faults of the database: waited out, or named in one line without secrets."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from optuna.storages import RDBStorage, get_storage
from optuna.study import StudyDirection
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from lora_lab.common.errors import InputError, StorageError
from lora_lab.search.patience import Patience, PatientStorage
from lora_lab.search.store import open_store
from lora_lab.search.urls import sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from optuna.storages import BaseStorage

    from lora_lab.study.spec import StudySpec


@contextmanager
def impatient(file: Path, patience_s: float) -> Iterator[tuple[PatientStorage, int]]:
    """A storage that SQLite itself does not wait for, and a study in it."""
    url = sqlite_url(file)
    storage = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 0.01}})
    study_id = storage.create_new_study([StudyDirection.MINIMIZE], "study")
    yield PatientStorage(get_storage(storage), url, Patience(patience_s), is_server=False), study_id
    storage.engine.dispose()


def locked(file: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    return connection


def test_a_lock_is_waited_out(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    with impatient(file, patience_s=20) as (storage, study_id):
        holder = locked(file)
        threading.Timer(0.4, holder.rollback).start()
        storage.set_study_user_attr(study_id, "key", 1)
        assert not holder.in_transaction, "it was waited for"
        assert storage.get_study_user_attrs(study_id) == {"key": 1}
        holder.close()


def test_a_lock_that_stays_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    with impatient(file, patience_s=0.3) as (storage, study_id):
        holder = locked(file)
        with pytest.raises(StorageError, match=r"database is locked, for \d+ s; .*run the same command again"):
            storage.set_study_user_attr(study_id, "key", 1)
        holder.close()


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "s.db"
    with impatient(file, patience_s=0.3) as (storage, study_id):
        storage.set_study_user_attr(study_id, "kept", 1)
    with sqlite3.connect(file) as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    url = sqlite_url(file)
    full = RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 0.01}}, skip_table_creation=True)
    full.engine.dispose()
    # SQLite's own page limit gives the error of a full disk.
    event.listen(full.engine, "connect", lambda opened, _: opened.execute(f"PRAGMA max_page_count={pages}"))
    storage = PatientStorage(get_storage(full), url, Patience(0.3), is_server=False)
    with pytest.raises(StorageError, match=r"database or disk is full"):
        storage.set_study_user_attr(study_id, "large", "x" * 200_000)
    assert storage.get_study_user_attrs(study_id) == {"kept": 1}
    full.engine.dispose()


def test_a_damaged_file_is_an_error_at_once(
    spec_of: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, content = tmp_path / "s.db", 10 * b"this is no database, but it is long enough to be one"
    file.write_bytes(content)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is waited for"))
    with pytest.raises(StorageError, match=r"s.db: file is not a database"):
        open_store(spec_of(), sqlite_url(file))
    assert file.read_bytes() == content


def test_a_folder_in_place_of_the_file_is_an_error_at_once(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"unable to open database file"):
        open_store(spec_of(), sqlite_url(tmp_path))


def test_a_server_that_cannot_be_reached_is_named_without_its_password(spec_of: Callable[..., StudySpec]) -> None:
    """Whether the driver is missing or the server is: one line, and no secret in it."""
    with pytest.raises(StorageError) as caught:
        open_store(spec_of(), "postgresql+pg8000://user:canary@127.0.0.1:1/db?password=canary")
    assert "postgresql+pg8000://***@127.0.0.1:1/db" in str(caught.value)
    assert "canary" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["runs/study.db", "", "sqlite://", "sqlite:///:memory:"])
def test_what_is_no_lasting_database_is_refused(spec_of: Callable[..., StudySpec], url: str) -> None:
    with pytest.raises(InputError, match=r"storage: .*sqlite:///runs/study.db"):
        open_store(spec_of(), url)


class LosesAnAnswer:
    """A storage whose connection breaks once after an operation was committed, before its answer."""

    def __init__(self, storage: BaseStorage, operation: str) -> None:
        self._storage, self._operation = storage, operation

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._storage, name)
        if name != self._operation:
            return attribute

        def lose(*args: Any, **kwargs: Any) -> Any:
            answer = attribute(*args, **kwargs)
            if self._operation:
                self._operation = ""
                raise OperationalError("", None, sqlite3.OperationalError("disk I/O error"))
            return answer

        return lose


@pytest.mark.parametrize(("sampler", "operation"), [("random", "create_new_trial"), ("grid", "set_trial_state_values")])
def test_a_trial_whose_making_was_not_answered_is_trained(
    spec_of: Callable[..., StudySpec], url: str, sampler: str, operation: str
) -> None:
    spec = spec_of(sampler=sampler, n_trials=4, parameters={"r": {"values": [2, 4, 8, 16]}})
    with open_store(spec, url) as store:
        patient = store._storage
        patient._storage = LosesAnAnswer(patient._storage, operation)
        asked = []
        while (one := store.ask()) is not None:
            asked.append(one.number)
            store.finish(one.number, {"eval_loss": 1.0})
        assert patient._storage._operation == "", "the answer was lost"
        assert sorted(asked) == [0, 1, 2, 3]
        assert [result.state for result in store.results()] == 4 * ["complete"]
