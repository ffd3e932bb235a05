"""What a passage of the Python library's documentation is about: text with a class, from the running Python's files.

A module is of one topic and of one split: what is learned must hold for modules that were not trained on.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from lora_lab.builtin.standard_library import prose_passages, read_source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Row = dict[str, str]

TOPICS: Mapping[str, tuple[str, str]] = {
    "concurrency": (
        "asyncio/base_events asyncio/events asyncio/tasks concurrent/futures/_base multiprocessing/managers threading",
        "asyncio/locks asyncio/queues asyncio/streams concurrent/futures/process multiprocessing/pool queue sched",
    ),
    "files": (
        "fileinput gzip os shutil tarfile tempfile",
        "bz2 filecmp fnmatch genericpath glob lzma ntpath posixpath",
    ),
    "mail": (
        "email/generator email/header email/message email/policy mailbox smtplib",
        "email/_policybase email/charset email/feedparser email/headerregistry email/utils imaplib poplib",
    ),
    "numbers": (
        "_pydecimal calendar statistics",
        "colorsys fractions heapq numbers random",
    ),
    "testing": (
        "bdb doctest trace unittest/loader unittest/mock",
        "pdb timeit traceback unittest/case unittest/runner unittest/suite",
    ),
    "web": (
        "html/parser http/client http/server urllib/request wsgiref/validate xmlrpc/server",
        "http/cookiejar http/cookies urllib/parse urllib/robotparser wsgiref/handlers wsgiref/headers xmlrpc/client",
    ),
}
"""By topic: the modules of the training rows, and those of the validation rows."""
ROWS = {"train": 48, "validation": 40}
"""Of each topic, at most."""
SHORTEST, LONGEST = 60, 400
"""Characters of a passage."""


def topics() -> dict[str, list[Row]]:
    """Rows of `text` and `label`, as many of each topic as of the others where there are enough, in a fixed shuffle."""
    known: set[str] = set()
    splits = {}
    for split, (name, most) in enumerate(ROWS.items()):
        rows = [
            {"text": text, "label": topic}
            for topic, modules in TOPICS.items()
            for text in _shuffled(set(_passages(modules[split].split())) - known)[:most]
        ]
        known |= {row["text"] for row in rows}
        splits[name] = sorted(rows, key=lambda row: _place(row["text"]))
    return splits


def _passages(modules: Iterable[str]) -> Iterator[str]:
    for module in modules:
        for passage in prose_passages(read_source(f"{module}.py")):
            for paragraph in passage.split("\n\n"):
                text = " ".join(paragraph.split())
                if SHORTEST <= len(text) <= LONGEST:
                    yield text


def _shuffled(texts: Iterable[str]) -> list[str]:
    # Sorted by hash: a shuffle in which a changed library file moves only its own rows.
    return sorted(texts, key=_place)


def _place(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
