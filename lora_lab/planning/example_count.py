"""How many training examples a study has, where that is told without reading them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pyarrow import parquet  # type: ignore[import-untyped]

from lora_lab.builtin.datasets import write_dataset
from lora_lab.data.locations import named_files
from lora_lab.data.mixing import held_out, repeats
from lora_lab.data.opening import kind_of, open_rows

if TYPE_CHECKING:
    from lora_lab.study.settings import DatasetRef, DataSettings


def training_examples(data: DataSettings) -> int | None:
    """Rows to train on, the held-out share taken off; None for data that would have to be fetched or parsed.

    Raises:
        InputError: a built-in dataset that does not exist.
    """
    counts = [_epoch_rows(ref, data.eval) for ref in data.train_refs]
    if None in counts:
        return None
    rows = sum(count for count in counts if count is not None)
    return min(rows, data.max_train_examples or rows)


def _epoch_rows(ref: DatasetRef, evaluation: float | DatasetRef) -> int | None:
    """Rows of a dataset that an epoch has: without those held out, as often as its weight says."""
    rows = _rows(ref)
    if rows is None:
        return None
    rows = min(rows, ref.max_examples or rows)
    if isinstance(evaluation, float):
        rows -= len(held_out(rows, evaluation))
    return rows if ref.weight is None else repeats(rows, ref.weight)


def _rows(ref: DatasetRef) -> int | None:
    if ref.path.startswith("builtin/"):
        with tempfile.TemporaryDirectory() as folder:
            return _lines(write_dataset(ref.path, Path(folder))[ref.split or "train"])
    counts = [_rows_of_file(file) for file in named_files(Path(ref.path).expanduser())]
    return None if not counts or None in counts else sum(count for count in counts if count is not None)


def _rows_of_file(path: Path) -> int | None:
    match kind_of(path):
        case ".jsonl" | ".ndjson":
            return _lines(path)
        case ".parquet":
            return int(parquet.read_metadata(path).num_rows)
    return None


def _lines(path: Path) -> int:
    with open_rows(path) as file:
        return sum(1 for line in file if line.strip())
