"""Where rows come from: a built-in dataset, a file, a folder of files, or the Hugging Face Hub.

Nothing that is read here can run code: JSON, CSV and Parquet files are data, and `datasets` refuses scripts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.builtin.datasets import write_dataset
from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadRows
from lora_lab.data.examples import Example, content_hash
from lora_lab.data.formats import validate
from lora_lab.data.order import permutation
from lora_lab.data.readers import READERS, RawRow, read_rows
from lora_lab.study.settings import DatasetRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lora_lab.study.settings import DataSettings, Purpose

DEFAULT_SPLITS: dict[Purpose, tuple[str, ...]] = {
    "train": ("train",),
    "eval": ("validation", "test"),
    "forgetting": ("validation", "test", "train"),
}
"""Which split is taken where none is named: the first that the dataset has."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""`owner/name`. A bare name is refused: `datasets` takes `json` for "all JSON files below this folder"."""

HELD_OUT_KEY = 0x5EED
"""Which rows are held out is the same for all trials and seeds, or their losses could not be compared."""


@dataclass(frozen=True, slots=True)
class LoadedExamples:
    """The validated examples of one split."""

    examples: tuple[Example, ...]
    source: str
    """What a reader of a message or a log should know: the path as given, and the split."""
    content_hash: str
    """The sha256 of the examples' content."""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True, slots=True)
class ExampleSplits:
    """What a study trains on, is measured on, and must not get worse on."""

    train: LoadedExamples
    eval: LoadedExamples
    forgetting: LoadedExamples | None
    notes: tuple[str, ...]
    """What the user should know, those of the three parts included."""


@dataclass(frozen=True, slots=True)
class _Split:
    """A split that was found: a local file, or one on the Hub."""

    source: str
    file: Path | None = None
    hub_split: str | None = None


def load_examples(ref: DatasetRef, purpose: Purpose, cache_folder: Path) -> LoadedExamples:
    """The examples that a reference in the study file means; only the first `max_examples` rows are read.

    Raises:
        InputError: there is no such dataset or split; too few or bad rows, by file and line.
    """
    bad = BadRows()
    loaded, _ = bad.settle_after(lambda: _load(_find(ref, purpose, cache_folder), ref, cache_folder, bad, {}))
    return loaded


def load_splits(data: DataSettings, cache_folder: Path, *, bad: BadRows | None = None) -> ExampleSplits:
    """Training, evaluation and (where asked for) forgetting examples; the same for all trials and seeds.

    Raises:
        InputError: as `load_examples` does (bad rows are left to a caller who gives `bad`); a share that leaves
            no row; evaluation on the rows that are trained on.
    """
    if bad is not None:
        return _load_splits(data, cache_folder, bad)
    own = BadRows(data.skip_invalid)
    splits, notes = own.settle_after(lambda: _load_splits(data, cache_folder, own))
    return replace(splits, notes=(*splits.notes, *notes))


def _load_splits(data: DataSettings, cache_folder: Path, bad: BadRows) -> ExampleSplits:
    columns = data.columns.given() if data.columns else {}
    train_split = _find(data.train, "train", cache_folder)
    train = _load(train_split, data.train, cache_folder, bad, columns)
    evaluation = forgetting = None
    if isinstance(data.eval, DatasetRef):
        eval_split = _find(data.eval, "eval", cache_folder)
        if _same(train_split, data.train, eval_split, data.eval):
            raise InputError(
                f"data.eval: must not be the training rows, but both are {train_split.source}; "
                "give a share such as 0.1, another file, or another split"
            )
        evaluation = _load(eval_split, data.eval, cache_folder, bad, columns, must_have=False)
    if data.forgetting:
        forgetting_split = _find(data.forgetting, "forgetting", cache_folder)
        forgetting = _load(forgetting_split, data.forgetting, cache_folder, bad, columns, must_have=False)
    if evaluation is None:
        assert isinstance(data.eval, float)
        train, evaluation = _hold_out(train, data.eval)
    if data.max_train_examples is not None:
        train = _first(train, data.max_train_examples)
    parts = [part for part in (train, evaluation, forgetting) if part is not None]
    notes = [*(note for part in parts for note in part.notes), *_repeated(train, evaluation)]
    return ExampleSplits(train, evaluation, forgetting, tuple(dict.fromkeys(notes)))


def _find(ref: DatasetRef, purpose: Purpose, cache_folder: Path) -> _Split:
    if ref.path.startswith("builtin/"):
        files = _write_builtin(ref.path, cache_folder / "builtin" / Path(ref.path).name)
        return _choose({split: [file] for split, file in files.items()}, ref, purpose)
    try:
        local = _find_locally(ref, purpose)
    except (OSError, RuntimeError) as error:  # too long a name, no permission, no home folder behind a `~`
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{_shown_path(ref)}: cannot be looked at ({reason}); correct the path") from None
    return local or _find_on_hub(ref, purpose, cache_folder)


@lru_cache(maxsize=16)
def _write_builtin(name: str, folder: Path) -> dict[str, Path]:
    # Once per process: a study needs the splits one by one, and making them takes a second.
    return write_dataset(name, folder)


def _find_locally(ref: DatasetRef, purpose: Purpose) -> _Split | None:
    path = Path(ref.path).expanduser()
    if path.is_dir():
        return _choose(_files_by_split(path), ref, purpose)
    if path.is_file():
        if ref.split is not None:
            raise InputError(
                f"{ref.path}: a file is one split, but split is {ref.split!r}; drop it, or name the folder"
            )
        return _Split(ref.path, file=path)
    if not HUB_ID.fullmatch(ref.path) or path.suffix.lower() in READERS:
        raise InputError(
            f"{_shown_path(ref)}: does not exist as a file or folder (seen from {Path.cwd()}), and is no "
            "Hub id (owner/name); correct the path"
        )
    return None


def _shown_path(ref: DatasetRef) -> str:
    # Escaped and cut: these are the paths that turned out to be none.
    return repr(ref.path[:200])[1:-1]


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in READERS and file.is_file():
            splits.setdefault(file.stem, []).append(file)
    return splits


def _choose(files: dict[str, list[Path]], ref: DatasetRef, purpose: Purpose) -> _Split:
    split = _choose_name(list(files), ref, purpose)
    if len(files[split]) > 1:
        names = " and ".join(file.name for file in files[split])
        raise InputError(f"{ref.path}: {split} must be one file, but there are {names}; delete one, or name the file")
    return _Split(f"{ref.path} ({split})", file=files[split][0])


def _choose_name(names: list[str], ref: DatasetRef, purpose: Purpose) -> str:
    wanted = (ref.split,) if ref.split else DEFAULT_SPLITS[purpose]
    found = next((split for split in wanted if split in names), None)
    if found is None:
        raise InputError(
            f"{ref.path}: has no split {' or '.join(wanted)} for data.{purpose}, but "
            f"{', '.join(names)[:200] or 'no dataset files'}; set `split`, or add the file"
        )
    return found


def _find_on_hub(ref: DatasetRef, purpose: Purpose, cache_folder: Path) -> _Split:
    # An explicit split may be a slice ("train[:10%]"), which only `datasets` understands.
    split = ref.split or _choose_name(list(_from_hub(ref, None, cache_folder)), ref, purpose)
    name = f"{ref.path}/{ref.name}" if ref.name else ref.path
    return _Split(f"{name} ({split})", hub_split=split)


def _from_hub(ref: DatasetRef, split: str | None, cache_folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_dataset(ref.path, name=ref.name, split=split, cache_dir=str(cache_folder / "hub"))
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"{ref.path}: does not exist as a file or folder, and the Hub id could not be loaded ({reason}); "
            "correct the path, its name or split, or the connection (HF_HUB_OFFLINE, HF_TOKEN)"
        ) from error


def _hub_rows(ref: DatasetRef, split: _Split, cache_folder: Path) -> Iterator[RawRow]:
    index = 0
    # As Arrow: plain values, so that no image or audio column of the dataset is decoded.
    for batch in _from_hub(ref, split.hub_split, cache_folder).with_format("arrow").iter(batch_size=1000):
        for fields in batch.to_pylist():
            yield RawRow(f"{split.source}[{index}]", fields)
            index += 1


def _load(
    split: _Split,
    ref: DatasetRef,
    cache_folder: Path,
    bad: BadRows,
    columns: Mapping[str, str],
    *,
    must_have: bool = True,
) -> LoadedExamples:
    """The examples of a split; `columns` that none of its rows has are an error only if it `must_have` them."""
    every_row = read_rows(split.file) if split.file else _hub_rows(ref, split, cache_folder)
    rows = list(islice(every_row, ref.max_examples))
    if ref.max_examples is not None and 0 < len(rows) < ref.max_examples:
        raise InputError(
            f"{split.source}: max_examples must not exceed the rows there are, but it is {ref.max_examples} "
            f"and there are {len(rows)}; lower or drop it"
        )
    if not must_have and not any(name in row.fields for row in rows for name in columns.values()):
        columns = {}
    examples, notes = validate(rows, split.source, bad, columns)
    if not examples and bad.skip:
        raise InputError(f"{split.source}: all {len(rows)} rows are bad; correct them, or drop data.skip_invalid")
    return LoadedExamples(examples, split.source, content_hash(examples), notes)


def _same(one: _Split, one_ref: DatasetRef, other: _Split, other_ref: DatasetRef) -> bool:
    if one.file and other.file:
        return one.file.samefile(other.file)
    return (one_ref.path, one_ref.name, one.hub_split) == (other_ref.path, other_ref.name, other.hub_split)


def _hold_out(loaded: LoadedExamples, share: float) -> tuple[LoadedExamples, LoadedExamples]:
    n = len(loaded)
    held_out = round(share * n)
    if not 0 < held_out < n:
        raise InputError(
            f"data.eval: a share must leave at least one row on both sides, but {share} of the {n} rows of "
            f"{loaded.source} is {held_out}; change the share, or give a dataset of its own"
        )
    chosen = set(permutation(n, HELD_OUT_KEY)[:held_out].tolist())
    train = tuple(example for index, example in enumerate(loaded.examples) if index not in chosen)
    evaluation = tuple(example for index, example in enumerate(loaded.examples) if index in chosen)
    return (
        LoadedExamples(train, f"{loaded.source} without {held_out} rows", content_hash(train), loaded.notes),
        LoadedExamples(evaluation, f"{held_out} rows of {loaded.source}", content_hash(evaluation), loaded.notes),
    )


def _first(loaded: LoadedExamples, count: int) -> LoadedExamples:
    if count > len(loaded):
        raise InputError(
            f"data.max_train_examples must not exceed the training rows, but it is {count} and {loaded.source} has "
            f"{len(loaded)}; lower or drop it"
        )
    examples = loaded.examples[:count]
    return LoadedExamples(examples, f"first {count} rows of {loaded.source}", content_hash(examples), loaded.notes)


def _repeated(train: LoadedExamples, evaluation: LoadedExamples) -> list[str]:
    known = set(train.examples)
    repeated = sum(example in known for example in evaluation.examples)
    if not repeated:
        return []
    count = f"{repeated} of {len(evaluation)} evaluation rows"
    return [f"{evaluation.source}: {count} also stand in the training rows: there, eval_loss measures recall"]
