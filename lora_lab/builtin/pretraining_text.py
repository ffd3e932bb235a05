"""The text that the built-in base model is pretrained on; used by `pretrain.py` alone, which runs once."""

# ruff: noqa: S311 (synthetic text and data order, not secrets)

from __future__ import annotations

import importlib
import random
import warnings
from typing import TYPE_CHECKING

from lora_lab.builtin.people import biography, people
from lora_lab.builtin.standard_library import (
    CODE_VALIDATION_FILES,
    PROSE_VALIDATION_FILES,
    clean_prose,
    function_texts,
    library_folder,
    prose_passages,
    read_source,
)

if TYPE_CHECKING:
    from pathlib import Path

_SKIPPED_FOLDERS = {
    "__pycache__", "dist-packages", "encodings", "idle_test", "lib-dynload", "pydoc_data", "site-packages",
    "test", "tests", "turtledemo",
}  # fmt: skip
"""`encodings` is character tables: a fifth of all comments, and nothing to learn from."""
_CHARACTER_TABLES = {"html/entities.py", "re/_casefix.py", "stringprep.py"}


def pretraining_prose() -> list[str]:
    """Docstrings, comments and help topics of the library, each once, without the validation files."""
    held_out = {paragraph for passage in validation_prose() for paragraph in passage.split("\n\n")}
    passages: dict[str, None] = {}
    for relative_path in _library_files():
        if relative_path not in PROSE_VALIDATION_FILES:
            passages.update(dict.fromkeys(_prose_of(relative_path)))
    topics = importlib.import_module("pydoc_data.topics").topics
    passages.update(dict.fromkeys(clean_prose(topics[name]) for name in sorted(topics)))
    return [text for text in passages if text and held_out.isdisjoint(text.split("\n\n"))]


def validation_prose() -> list[str]:
    """The passages of the files that are held out from pretraining."""
    return [passage for path in PROSE_VALIDATION_FILES for passage in prose_passages(read_source(path))]


def validation_code() -> list[str]:
    """Functions of the `stdlib-code` validation files; the base was not trained on code."""
    return [text for path in CODE_VALIDATION_FILES for text in function_texts(read_source(path))]


def pretraining_biographies(count: int) -> list[str]:
    """One biography for each of `count` people."""
    generator = random.Random(1)
    return [biography(person, generator) for person in people("pretraining", count)]


def validation_biographies(count: int) -> list[str]:
    """Biographies of people that occur nowhere else."""
    generator = random.Random(2)
    return [biography(person, generator) for person in people("pretraining-validation", count)]


def _library_files() -> list[str]:
    root = library_folder()
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    return sorted({path.as_posix() for path in paths if _is_wanted(path)} - _CHARACTER_TABLES)


def _is_wanted(path: Path) -> bool:
    folders = path.parts[:-1]
    return (
        _SKIPPED_FOLDERS.isdisjoint(folders)
        and not any(folder.startswith("config-") for folder in folders)
        and not path.name.startswith("_sysconfigdata")
    )


def _prose_of(relative_path: str) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in a few library files
        return prose_passages(read_source(relative_path))
