"""Writing files and folders so that a kill, a power cut or a full disk leaves the old or the new one, never a part.

What is written stands under a hidden name beside its place until it is whole and on the disk. The name is the
writing process' own, so that two writers never share a part; what dead ones left there is removed by the next.
"""

from __future__ import annotations

import glob
import os
import shutil
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lora_lab.common.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into a `StorageError` that names `path` and the way out."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space or fix permissions, and run "
            "the same command again: it goes on where it stopped"
        ) from error


def write_durably(path: Path, content: bytes | str) -> None:
    """Replace the content of `path`; text becomes UTF-8, line ends as they are; the folder is made where it is missing.

    Raises:
        StorageError: it cannot be written (disk full, no permission); the old content stays.
    """
    payload = content.encode() if isinstance(content, str) else content
    with storage_errors(path), _partial_of(path) as partial:
        with partial.open("xb") as file:  # "x": a link in its place would lead the bytes elsewhere
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)  # noqa: PTH105 -- the atomic rename is the point
        _sync(path.parent)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to be filled in the block, which then takes the place of `folder` and what was in it.

    A kill between the two renames leaves neither the old nor the new one, but never a mixture.

    Raises:
        StorageError: it cannot be written, or the block met an `OSError`; the old folder stays.
    """
    with storage_errors(folder), _partial_of(folder) as partial:
        partial.mkdir()
        yield partial
        for path in (partial, *partial.rglob("*")):
            if not path.is_symlink():
                _sync(path)
        move_folder(partial, folder)


def move_folder(source: Path, target: Path) -> None:
    """Put a folder in the place of another, or where there is none.

    Raises:
        StorageError: it cannot be moved.
    """
    with storage_errors(target), _partial_of(target.with_name(f"{target.name}.old")) as old:
        if target.exists():
            os.replace(target, old)  # noqa: PTH105 -- a folder with something in it cannot be replaced at once
        os.replace(source, target)  # noqa: PTH105 -- the atomic rename is the point
        _sync(target.parent)


@contextmanager
def _partial_of(path: Path) -> Iterator[Path]:
    """A free name beside `path` for what is not whole yet; nothing is left there, also after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{PARTIAL}"):
        process = left.name.removesuffix(PARTIAL).rpartition(".")[2]
        if not (process.isdigit() and _lives(int(process))):
            _remove(left)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
    finally:
        with suppress(OSError):  # on a full disk, its part would only be in the way
            _remove(partial)


def _lives(process: int) -> bool:
    """Whether another process of this number runs on this machine."""
    if process == os.getpid():
        return False  # what it left is of an earlier one: this one is about to write
    if os.name != "posix":
        return True  # elsewhere, to ask for a process ends it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Make sure that a power cut takes back nothing of a file's content or a folder's entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
