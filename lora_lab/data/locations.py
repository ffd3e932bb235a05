"""Where a dataset is: a built-in one, files, a folder of them, a folder that `datasets` saved, or the Hugging Face Hub.

Nothing that is read here can run code: JSON, CSV, Parquet and Arrow files are data, and `datasets` refuses scripts.
"""

from __future__ import annotations

import glob
import json
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lab.builtin.datasets import write_dataset
from lora_lab.common.errors import InputError
from lora_lab.data.opening import check_is_data, check_shards, kind_of, stem_of
from lora_lab.data.readers import READERS, RawRow, arrow_rows, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from lora_lab.study.data_settings import DatasetRef, Purpose

DEFAULT_SPLITS: dict[Purpose, tuple[str, ...]] = {
    "train": ("train",),
    "eval": ("validation", "test"),
    "test": ("test", "validation"),
    "forgetting": ("validation", "test", "train"),
}
"""Which split is taken where none is named: the first that the dataset has."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""`owner/name`. A bare name is refused: `datasets` takes `json` for "all JSON files below this folder"."""


@dataclass(frozen=True, slots=True)
class Location:
    """The rows that a reference in the study file means; one of the three is set."""

    source: str
    """What a reader of a message or a log should know: the path as given, and the split."""
    files: tuple[Path, ...] = ()
    saved: Path | None = None
    """A folder that `Dataset.save_to_disk` wrote."""
    hub: tuple[str, str | None, str | None, str] | None = None
    """Hub id, configuration, revision, and split."""
    notes: tuple[str, ...] = ()
    """What the user should know of how the files were chosen."""

    def rows(self, cache_folder: Path) -> Iterator[RawRow]:
        """The rows in order, each with its place.

        Raises:
            InputError: a file or a dataset that cannot be read.
        """
        if self.saved is not None:
            return _saved_rows(self.saved)
        if self.hub is not None:
            path, name, revision, split = self.hub
            return _dataset_rows(_from_hub(path, name, revision, split, cache_folder), self.source)
        return chain.from_iterable(read_rows(file) for file in self.files)

    def overlaps(self, other: Location) -> bool:
        """Whether both have a file, a folder, or a split of the Hub in common."""
        if self.hub is not None:
            return self.hub == other.hub
        mine, theirs = ([*one.files, *([one.saved] if one.saved else [])] for one in (self, other))
        return any(one.samefile(two) for one in mine for two in theirs)


def find(ref: DatasetRef, purpose: Purpose, cache_folder: Path) -> Location:
    """Where the rows of a reference are.

    Raises:
        InputError: there is no such dataset or split.
    """
    if ref.path.startswith("builtin/"):
        files = _write_builtin(ref.path, cache_folder / "builtin" / Path(ref.path).name)
        return _choose({split: [file] for split, file in files.items()}, ref, purpose)
    try:
        local = _find_locally(ref, purpose, cache_folder)
    except (OSError, RuntimeError) as error:  # too long a name, no permission, no home folder behind a `~`
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{_shown_path(ref)}: cannot be looked at ({reason}); correct the path") from None
    if local is None:
        return _find_on_hub(ref, purpose, cache_folder)
    if ref.revision is not None:
        raise InputError(f"{ref.path}: revision {ref.revision!r} is of datasets on the Hub, but this is local; drop it")
    return local


@lru_cache(maxsize=16)
def _write_builtin(name: str, folder: Path) -> dict[str, Path]:
    # Once per process: a study needs the splits one by one, and making them takes a second.
    return write_dataset(name, folder)


def _find_locally(ref: DatasetRef, purpose: Purpose, cache_folder: Path) -> Location | None:
    path = Path(ref.path).expanduser()
    if path.is_dir():
        return _find_in_folder(path, ref, purpose, cache_folder)
    files = named_files(path)
    if path.is_file():
        _refuse_split(ref, "a file is one split", "name the folder")
        return Location(ref.path, files=files)
    if glob.has_magic(str(path)):
        _refuse_split(ref, "a pattern is one split", "name the folder")
        if not files:
            raise InputError(f"{_shown_path(ref)}: matches no file (seen from {Path.cwd()}); correct the pattern")
        check_shards(files)
        return Location(ref.path, files=files)
    if not HUB_ID.fullmatch(ref.path) or kind_of(path) in READERS:
        raise InputError(
            f"{_shown_path(ref)}: does not exist as a file or folder (seen from {Path.cwd()}), and is no "
            "Hub id (owner/name); correct the path"
        )
    return None


def named_files(path: Path) -> tuple[Path, ...]:
    """The file of this name or, where there is none, the files that the name as a pattern matches, in order."""
    if path.is_file():
        return (path,)
    if path.exists() or not glob.has_magic(str(path)):
        return ()
    found = glob.iglob(str(path), recursive=True)  # noqa: PTH207 - the pattern may be absolute
    return tuple(file for file in map(Path, sorted(found)) if file.is_file())


def _refuse_split(ref: DatasetRef, rule: str, instead: str) -> None:
    if ref.split is not None:
        raise InputError(f"{ref.path}: {rule}, but split is {ref.split!r}; drop it, or {instead}")


def _shown_path(ref: DatasetRef) -> str:
    # Escaped and cut: these are the paths that turned out to be none.
    return repr(ref.path[:200])[1:-1]


def _find_in_folder(folder: Path, ref: DatasetRef, purpose: Purpose, cache_folder: Path) -> Location:
    if (folder / "dataset_dict.json").is_file():
        split = _choose_name(_saved_splits(folder), ref, purpose)
        return Location(f"{ref.path} ({split})", saved=folder / split)
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        _refuse_split(ref, "a folder of Dataset.save_to_disk is one split", "save a DatasetDict")
        return Location(ref.path, saved=folder)
    files = _files_by_name(folder)
    wanted = (ref.split,) if ref.split else DEFAULT_SPLITS[purpose]
    if ref.name is None and any(split in files for split in wanted):
        return _choose(files, ref, purpose)
    found = _files_by_datasets(folder, ref, cache_folder)
    location = _choose(found or files, ref, purpose)
    return replace(location, notes=_which_files(folder, location, found)) if found else location


def _which_files(folder: Path, location: Location, found: dict[str, list[Path]]) -> tuple[str, ...]:
    """Notes on which files of a folder are read, and which are in no split."""
    read = f"{location.source}: is {_listed(folder, location.files)}"
    known = {file.resolve() for files in found.values() for file in files}
    every = (file for file in sorted(folder.rglob("*")) if kind_of(file) in READERS and file.is_file())
    others = [file for file in every if file.resolve() not in known and not _is_hidden(file.relative_to(folder))]
    return (read, f"{folder}: in no split: {_listed(folder, others)}") if others else (read,)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__")) for part in path.parts)


def _listed(folder: Path, files: Sequence[Path]) -> str:
    names = [str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file) for file in files]
    more = f" and {len(names) - 5} more files" if len(names) > 6 else ""
    return ", ".join(names[:5] if more else names) + more


def _saved_splits(folder: Path) -> list[str]:
    try:
        return [
            str(split) for split in json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}/dataset_dict.json: names no splits ({error!r}); save the dataset again") from None


def _files_by_name(folder: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if kind_of(file) in READERS and file.is_file():
            splits.setdefault(stem_of(file), []).append(file)
    return splits


def _files_by_datasets(folder: Path, ref: DatasetRef, cache_folder: Path) -> dict[str, list[Path]]:
    """Splits as `datasets` finds them: by the README of a clone from the Hub, or by the names of folders and shards."""
    import datasets

    try:
        builder = datasets.load_dataset_builder(str(folder), name=ref.name, cache_dir=str(cache_folder / "hub"))
    except (datasets.exceptions.DataFilesNotFoundError, FileNotFoundError):
        return {}
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{ref.path}: its files cannot be told apart ({reason}); set `name`, or name a file") from None
    return {str(split): [Path(file) for file in files] for split, files in (builder.config.data_files or {}).items()}


def _choose(files: dict[str, list[Path]], ref: DatasetRef, purpose: Purpose) -> Location:
    split = _choose_name(list(files), ref, purpose)
    names = [file.name for file in files[split]]
    if len({(file.parent, stem_of(file)) for file in files[split]}) < len(names):
        which = " and ".join(names)[:200]
        raise InputError(f"{ref.path}: {split} must be one file, but there are {which}; delete one, or name the file")
    check_shards(files[split])
    return Location(f"{ref.path} ({split})", files=tuple(files[split]))


def _choose_name(names: Sequence[str], ref: DatasetRef, purpose: Purpose) -> str:
    wanted = (ref.split,) if ref.split else DEFAULT_SPLITS[purpose]
    found = next((split for split in wanted if split in names), None)
    if found is None:
        raise InputError(
            f"{ref.path}: has no split {' or '.join(wanted)} for data.{purpose}, but "
            f"{', '.join(names)[:200] or 'no dataset files'}; set `split`, or add the file"
        )
    return found


def _find_on_hub(ref: DatasetRef, purpose: Purpose, cache_folder: Path) -> Location:
    # An explicit split may be a slice ("train[:10%]"), which only `datasets` understands.
    split = ref.split or _choose_name(
        list(_from_hub(ref.path, ref.name, ref.revision, None, cache_folder)), ref, purpose
    )
    name = "/".join(part for part in (ref.path, ref.name) if part)
    revision = f"@{ref.revision}" if ref.revision else ""
    return Location(f"{name}{revision} ({split})", hub=(ref.path, ref.name, ref.revision, split))


def _from_hub(path: str, name: str | None, revision: str | None, split: str | None, cache_folder: Path) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            path, name=name, revision=revision, split=split, cache_dir=str(cache_folder / "hub"), streaming=False
        )
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(
            f"{path}: does not exist as a file or folder, and the Hub id could not be loaded ({reason}); "
            "correct the path, its name, revision or split, or the connection (HF_HUB_OFFLINE, HF_TOKEN)"
        ) from error


def _saved_rows(folder: Path) -> Iterator[RawRow]:
    import datasets
    import pyarrow as pa  # type: ignore[import-untyped]

    try:
        for file in sorted(folder.glob("*.arrow")):
            check_is_data(file)
        yield from _dataset_rows(datasets.load_from_disk(str(folder)), str(folder))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, pa.ArrowInvalid) as error:
        reason = str(error).partition("\n")[0][:200]
        raise InputError(f"{folder}: cannot be read as a saved dataset ({reason}); save it again") from None


def _dataset_rows(dataset: Any, source: str) -> Iterator[RawRow]:
    # As Arrow: plain values, so that no image or audio column of the dataset is decoded.
    return arrow_rows(dataset.with_format("arrow").iter(batch_size=1000), source)
