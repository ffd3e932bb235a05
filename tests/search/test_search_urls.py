"""Database URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_lab.search.store import open_store
from lora_lab.search.urls import mask_password, sqlite_file, sqlite_url

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
    ("url", "shown"),
    [
        ("postgresql+psycopg://me:canary@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("mysql://me:c%40nary@host/db?ssl=1", "mysql://me:***@host/db?ssl=1"),
        ("postgresql://host/db?user=me&password=canary", "postgresql://host/db?password=***&user=me"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("sqlite:////data/a@b/study.db", "sqlite:////data/a%40b/study.db"),
    ],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert mask_password(url) == shown


@pytest.mark.parametrize("url", ["postgresql://me:canary@host:port/db", "://me:canary@host", "me:canary@"])
def test_a_broken_url_shows_no_password_either(url: str) -> None:
    assert "canary" not in mask_password(url) or "://" not in url
