"""Database URLs."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import psutil
import pytest

from lora_lab.common.errors import InputError, StorageError, StudyLockedError
from lora_lab.search.store import open_store
from lora_lab.search.urls import backend, connect_arguments, sqlite_file, sqlite_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.study.spec import StudySpec


@pytest.mark.parametrize("folder", ["plain", "a b", "a?b", "a#b", "a%20b", "{a}", "é'\"", "a@b:c"])
def test_a_path_with_any_characters_is_that_file(
    spec_of: Callable[..., StudySpec], tmp_path: Path, folder: str
) -> None:
    file = tmp_path / folder / "study.db"
    assert sqlite_file(sqlite_url(file)) == file
    with open_store(spec_of(), sqlite_url(file)) as store:
        store.ask()
    assert file.is_file()
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    with open_store(spec_of(), sqlite_url(file), create=False) as store:
        assert len(store.results()) == 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgres://u:canary@h/d", r"begins with postgres; write postgresql\+psycopg://user@host/database"),
        ("mariadb+pymysql://u:canary@h/d", r"begins with mariadb; write mysql\+pymysql://user@host/database"),
        ("oracle://u:canary@h/d", r"is of oracle, which keeps no studies; .* or mysql\+pymysql://user@host/database"),
        ("postgresql+abacus://u:canary@h/d", r"driver abacus, which SQLAlchemy does not know; write postgresql\+psy"),
        ("u:canary@h/d", r"is no database URL; write for example sqlite:///runs/study.db, postgresql"),
    ],
)
def test_an_address_that_cannot_be_a_storage_says_how_one_is_written(
    spec_of: Callable[..., StudySpec], url: str, said: str
) -> None:
    with pytest.raises(InputError, match=said) as refused:
        open_store(spec_of(), url)
    assert "canary" not in str(refused.value) or "://" not in url
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("postgresql+psycopg://u:canary@127.0.0.1:9/d", "psycopg", "postgresql"),
        ("mysql+pymysql://u:canary@127.0.0.1:9/d", "pymysql", "mysql"),
    ],
)
def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    spec_of: Callable[..., StudySpec], monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        StorageError, match=rf"driver {module} is not installed; pip install 'lora-lab\[{extra}\]'"
    ) as no:
        open_store(spec_of(), url)
    assert "canary" not in str(no.value)


def test_what_an_address_says_itself_is_kept() -> None:
    assert backend("postgresql://h/d") == "postgresql"
    said = connect_arguments("postgresql+psycopg://h/d?connect_timeout=3&keepalives_idle=5")
    assert "connect_timeout" not in said
    assert "keepalives_idle" not in said
    assert said["client_encoding"] == "utf8"
    assert connect_arguments("mysql+pymysql://h/d") == {}


def test_a_sqlite_file_on_a_network_file_system_is_refused(
    spec_of: Callable[..., StudySpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "share" / "runs" / "study.db"
    file.parent.parent.mkdir()
    with open_store(spec_of(), sqlite_url(file)):
        pass
    mounts = [*psutil.disk_partitions(all=True), SimpleNamespace(mountpoint=str(file.parent.parent), fstype="nfs4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda **_: mounts)
    for one in (file, tmp_path / "share" / "not" / "there" / "yet.db"):
        with pytest.raises(StorageError, match=r"on a network file system \(nfs4\).*PostgreSQL"):
            open_store(spec_of(), sqlite_url(one))
    with open_store(spec_of(), sqlite_url(file), create=False) as reader:
        assert reader.results() == []
    with open_store(spec_of(), sqlite_url(tmp_path / "local.db")):
        pass


def test_two_coordinators_in_one_file(spec_of: Callable[..., StudySpec], tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "shared.db")
    with open_store(spec_of(), url, lease=True), open_store(spec_of(), url, create=False) as reader:
        assert reader.results() == []
        with pytest.raises(StudyLockedError, match=rf"study study in .*shared.db \(process {os.getpid()} on"):
            open_store(spec_of(), url, lease=True)
        with open_store(spec_of().model_copy(update={"study_name": "other"}), url, lease=True):
            pass
    with open_store(spec_of(), url, lease=True):
        pass
