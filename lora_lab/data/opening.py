"""Files of rows by their names: what kind they are, how they are compressed, and whether they hold the data at all."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from typing import TYPE_CHECKING, BinaryIO, cast

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

GIT_LFS = b"version https://git-lfs"
"""How a pointer of Git LFS begins, which stands where a file was not downloaded."""

SHARD = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<kind>\..*)?")
"""The name of a shard, as `datasets` writes it."""

DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
"""What decompressing a damaged file raises, beside an OSError without a number."""


def _open_zstd(path: Path) -> BinaryIO:
    import pyarrow as pa  # type: ignore[import-untyped]

    return cast("BinaryIO", io.BufferedReader(pa.input_stream(str(path), compression="zstd")))


_OPENERS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": lambda path: cast("BinaryIO", gzip.GzipFile(path, "rb")),
    ".bz2": lambda path: cast("BinaryIO", bz2.BZ2File(path, "rb")),
    ".xz": lambda path: cast("BinaryIO", lzma.LZMAFile(path, "rb")),  # noqa: SIM115 - the caller closes it
    ".zst": _open_zstd,
}


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds: `.jsonl` of `rows.jsonl` and of `rows.jsonl.gz`."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in _OPENERS:
        return suffixes[-2]
    return suffixes[-1] if suffixes else ""


def stem_of(path: Path) -> str:
    """The name of a file without its kind and compression."""
    plain = path.with_suffix("") if path.suffix.lower() in _OPENERS else path
    return plain.stem


def is_compressed(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix.lower() in _OPENERS


def open_rows(path: Path) -> BinaryIO:
    """The bytes of a file, decompressed by its name (.gz, .bz2, .xz, .zst)."""
    opener = _OPENERS.get(path.suffix.lower())
    return path.open("rb") if opener is None else opener(path)


def check_is_data(path: Path) -> None:
    """Check that a file is no pointer of Git LFS.

    Raises:
        InputError: it is one.
    """
    with path.open("rb") as file:
        if file.read(len(GIT_LFS)) == GIT_LFS:
            raise InputError(f"{path}: is a pointer of Git LFS, not the data; run `git lfs pull` in its repository")


def check_shards(files: Iterable[Path]) -> None:
    """Check that no shard is missing: of `train-00000-of-00003.parquet`, all three must be there.

    Raises:
        InputError: some are missing.
    """
    found: dict[tuple[str, int], set[int]] = {}
    for file in files:
        shard = SHARD.fullmatch(file.name)
        if shard:
            name = f"{file.parent / shard['name']}-*-of-{shard['count']}{shard['kind'] or ''}"
            found.setdefault((name, int(shard["count"])), set()).add(int(shard["number"]))
    for (name, count), numbers in found.items():
        missing = sorted(set(range(count)) - numbers)
        if missing:
            raise InputError(
                f"{name}: {len(missing)} of {count} shards are missing (the first is {missing[0]}); download them"
            )
