"""Database URLs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from lora_lab.search.store import open_store
from lora_lab.search.urls import sqlite_file, sqlite_url

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
