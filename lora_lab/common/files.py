"""Writing a file so that a kill, a power cut or a full disk leaves its old or its new content, never a part."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lora_lab.common.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into a `StorageError` that names `path` and the way out."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space or fix permissions, and run "
            "the same command again: it goes on from the last checkpoint"
        ) from error


def write_durably(path: Path, payload: bytes) -> None:
    """Replace the content of `path`; its folder is made where it is missing.

    Raises:
        StorageError: it cannot be written (disk full, no permission); the old content stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # A stale one goes first, and "x" makes its own: a link in its place would lead the bytes elsewhere.
        partial.unlink(missing_ok=True)
        try:
            with partial.open("xb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)  # noqa: PTH105 -- the atomic rename is the point
        except OSError:
            partial.unlink(missing_ok=True)  # on a full disk, its part would only be in the way
            raise
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
