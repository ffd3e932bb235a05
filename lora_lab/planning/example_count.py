"""How many training examples a study has, as far as that can be told before anything is loaded."""

from __future__ import annotations

import glob
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import ArrowInvalid, parquet  # type: ignore[import-untyped]

from lora_lab.common.sizes import bytes_text
from lora_lab.data.locations import HUB_ID, find, named_files
from lora_lab.data.mixing import held_out, repeats
from lora_lab.data.opening import DAMAGED, check_is_data, kind_of, open_rows
from lora_lab.data.readers import read_rows

if TYPE_CHECKING:
    from lora_lab.data.locations import Location
    from lora_lab.study.data_settings import DatasetRef, DataSettings, Purpose

MOST_BYTES = 32 * 2**20
"""Of a dataset whose rows are only known by parsing it; a larger one is not counted."""
LINES = (".jsonl", ".ndjson")


class _UncountedError(Exception):
    """Rows that cannot be counted here and now; the message says why, in words."""


def training_examples(data: DataSettings) -> int | None:
    """Rows to train on, the held-out share taken off; None for data that is not here, or would take long to count.

    Raises:
        InputError: a dataset that is here and cannot be used.
    """
    try:
        rows = sum(_epoch_rows(ref, data.eval) for ref in data.train_refs)
    except _UncountedError:
        return None
    return min(rows, data.max_train_examples or rows)


def evaluation_examples(data: DataSettings) -> int | None:
    """Rows to evaluate on; None for data that is not here, or would take long to count.

    Raises:
        InputError: a dataset that is here and cannot be used.
    """
    try:
        if not isinstance(data.eval, float):
            return _limited_rows(data.eval, "eval")
        return sum(len(held_out(_limited_rows(ref), data.eval)) for ref in data.train_refs)
    except _UncountedError:
        return None


def unseen_examples(data: DataSettings) -> int | None:
    """Rows that choose nothing, 0 without any; None for data that is not here, or would take long to count.

    Raises:
        InputError: a dataset that is here and cannot be used.
    """
    try:
        return 0 if data.test is None else _limited_rows(data.test, "test")
    except _UncountedError:
        return None


def why_uncounted(data: DataSettings) -> str:
    """Why the rows are not counted, in words; empty where they are.

    Raises:
        InputError: a dataset that is here and cannot be used.
    """
    try:
        for ref in data.train_refs:
            _rows(ref)
    except _UncountedError as error:
        return str(error)
    return ""


def _epoch_rows(ref: DatasetRef, evaluation: float | DatasetRef) -> int:
    """Rows of a dataset that an epoch has: without those held out, as often as its weight says."""
    rows = _limited_rows(ref)
    if isinstance(evaluation, float):
        rows -= len(held_out(rows, evaluation))
    return rows if ref.weight is None else repeats(rows, ref.weight)


def _limited_rows(ref: DatasetRef, purpose: Purpose = "train") -> int:
    """Rows of a dataset that are used."""
    rows = _rows(ref, purpose)
    return min(rows, ref.max_examples or rows)


def _rows(ref: DatasetRef, purpose: Purpose = "train") -> int:
    path = Path(ref.path).expanduser()
    if not ref.path.startswith("builtin/") and not path.exists() and not named_files(path):
        raise _UncountedError(_why_not_here(ref.path))
    with tempfile.TemporaryDirectory() as folder:
        return _counted(find(ref, purpose, Path(folder)), Path(folder))


def _why_not_here(path: str) -> str:
    if glob.has_magic(path):
        return f"{path} matches no file here"
    is_on_the_hub = HUB_ID.fullmatch(path) and not Path(path).suffix
    return f"{path} is no file or folder here" + (", and would be fetched from the Hub" if is_on_the_hub else "")


def _counted(location: Location, cache_folder: Path) -> int:
    files = [*location.files, *(location.saved.glob("*.arrow") if location.saved else ())]
    parsed = sum(file.stat().st_size for file in files if kind_of(file) not in (*LINES, ".parquet"))
    if parsed > MOST_BYTES:
        raise _UncountedError(f"{location.source} has {bytes_text(parsed)}, which would all have to be read")
    if location.saved is not None:
        return sum(1 for _ in location.rows(cache_folder))
    return sum(map(_rows_of_file, files))


def _rows_of_file(path: Path) -> int:
    check_is_data(path)
    with suppress(OSError, ArrowInvalid, *DAMAGED):  # the reader below says what is wrong with it
        match kind_of(path):
            case ".jsonl" | ".ndjson":
                return _lines(path)
            case ".parquet":
                return int(parquet.read_metadata(path).num_rows)
    return sum(1 for _ in read_rows(path))


def _lines(path: Path) -> int:
    with open_rows(path) as file:
        return sum(1 for line in file if line.strip())
