"""Where a study keeps its trials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.search.urls import sqlite_url

if TYPE_CHECKING:
    from lora_lab.results.folder import RunFolder
    from lora_lab.study.spec import StudySpec


def storage_url(spec: StudySpec, folder: RunFolder) -> str:
    """Where the study's trials are kept."""
    return spec.storage or sqlite_url(folder.database)
