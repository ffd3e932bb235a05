"""The studies whose run folders lie here, each in a few figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lora_lab.common.errors import LoraLabError
from lora_lab.results.folder import RUNS, RunFolder
from lora_lab.results.results import read_results
from lora_lab.results.status import read_status
from lora_lab.search.known_studies import stored_spec
from lora_lab.search.store import open_store
from lora_lab.search.urls import sqlite_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lora_lab.results.results import Results

StudyState = Literal["running", "complete", "interrupted", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOverview:
    """One study."""

    name: str
    state: StudyState
    changed_at: float
    """When its folder was last written to, in seconds since the epoch."""
    done: int | None = None
    """Trials of the search that have ended."""
    total: int | None = None
    """Trials of the search in all."""
    left_s: float | None = None
    """Of a running study, seconds to its end as far as that is known."""
    results: Results | None = None
    """What it found by now; None where nothing was trained, or it cannot be read."""
    problem: str = ""
    """Why it cannot be read."""


def studies_here(runs: Path = RUNS) -> list[StudyOverview]:
    """Every study with a run folder, the one that changed last first."""
    folders = runs.iterdir() if runs.is_dir() else ()
    found = [_overview(RunFolder(folder)) for folder in sorted(folders) if _is_a_study(RunFolder(folder))]
    return sorted(found, key=lambda study: -study.changed_at)


def _is_a_study(folder: RunFolder) -> bool:
    return any(path.is_file() for path in _signs(folder))


def _signs(folder: RunFolder) -> Iterator[Path]:
    yield from (folder.database, folder.status, folder.summary)


def _overview(folder: RunFolder) -> StudyOverview:
    name, status = folder.root.name, read_status(folder.status)
    changed = max(path.stat().st_mtime for path in _signs(folder) if path.is_file())
    alive = status is not None and status.is_alive()
    left = status.left_s if alive and status is not None else None
    state: StudyState = "running" if alive else "unknown"
    if not folder.database.is_file():
        problem = "its trials are in a database elsewhere; show it by its study file"
        return StudyOverview(name=name, state=state, changed_at=changed, left_s=left, problem=problem)
    try:
        url = sqlite_url(folder.database)
        spec = stored_spec(url, name)
        with open_store(spec, url, create=False) as store:
            done, total = store.budget()
            if not alive:
                state = "complete" if store.record.is_complete else "interrupted"
            results = read_results(spec, store, folder)
    except LoraLabError as error:
        return StudyOverview(name=name, state=state, changed_at=changed, left_s=left, problem=str(error))
    return StudyOverview(
        name=name, state=state, changed_at=changed, done=done, total=total, left_s=left, results=results
    )
