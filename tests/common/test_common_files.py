"""Whatever is written is the old or the new one after a kill; a full disk is named and leaves the old one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from common.killer import killed
from runner.scripted import spec
from samples import sample

from lora_lab.builtin import datasets
from lora_lab.common.errors import StorageError
from lora_lab.common.files import move_folder, replacing_folder, write_durably
from lora_lab.figures import page
from lora_lab.results.choice import write_choice
from lora_lab.results.folder import RunFolder
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult
from lora_lab.tracking.mirror import MlflowMirror

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OLD, NEW = "old" * 50, "new" * 70


@dataclass(frozen=True)
class Writer:
    """Something that writes a file or folder `out` below a folder, from a text."""

    write: Callable[[Path, str], None]
    is_folder: bool = False


def durably(folder: Path, text: str) -> None:
    write_durably(folder / "out", text)


def into_a_folder(folder: Path, text: str) -> None:
    with replacing_folder(folder / "out") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "one").write_text(text)
        (partial / "two").write_text(text)


def by_a_move(folder: Path, text: str) -> None:
    source = folder / "source"
    source.mkdir(exist_ok=True)
    (source / "one").write_text(text)
    move_folder(source, folder / "out")


def shorter_run(folder: Path, text: str) -> None:
    run = RunFolder(folder)
    files = run.files_of(0).shorter_run(1).path
    files.mkdir(parents=True, exist_ok=True)
    (files / "one").write_text(text)
    run.adopt_shorter_run(0, 1, 1)


def choice(folder: Path, text: str) -> None:
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (adapter / name).write_text(text)
    config = spec().trial_config({"r": 4, "learning_rate": 1e-3})
    result = TrialResult(
        number=7,
        state="complete",
        params={},
        config=config,
        engine=engine_for(config),
        metrics={"steps": float(len(text))},
    )
    write_choice(folder / "out", result, adapter)


def report(folder: Path, text: str) -> None:
    page.write_page(folder / "out", "title", text)


def dataset(folder: Path, text: str) -> None:
    made = datasets.BuiltinDataset("rows", lambda: {"out": [{"text": text}]})
    known, datasets.BUILTIN_DATASETS = datasets.BUILTIN_DATASETS, {"builtin/x": made}
    try:
        datasets.write_dataset("builtin/x", folder)
    finally:
        datasets.BUILTIN_DATASETS = known


def cursor(folder: Path, text: str) -> None:
    mirror = MlflowMirror(folder, f"http://{text}")
    mirror._save_cursor()


WRITERS = {
    "a file": Writer(durably),
    "a folder": Writer(into_a_folder, is_folder=True),
    "a moved folder": Writer(by_a_move, is_folder=True),
    "a shorter run": Writer(shorter_run, is_folder=True),
    "a chosen adapter": Writer(choice, is_folder=True),
    "the report": Writer(report),
    "a built-in dataset": Writer(dataset),
    "the cursor of the mirror": Writer(cursor),
}
PLACES = {
    "a shorter run": "trials/0001",
    "a built-in dataset": "out.jsonl",
    "the cursor of the mirror": "mlflow.cursor",
}


def content(path: Path) -> dict[str, bytes] | None:
    """Everything in a file or folder; None where there is none."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()} or None


@pytest.fixture(autouse=True)
def _short_page(monkeypatch):
    """The report without the four megabytes of plotly, which would be written a hundred times."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "plotly")


@pytest.mark.parametrize("name", sample(WRITERS, ["a file", "a folder", "a moved folder", "a shorter run"]))
def test_a_kill_at_any_disk_operation_leaves_the_old_or_the_new_one(tmp_path, name):
    writer, place = WRITERS[name], PLACES.get(name, "out")
    folder = tmp_path / "run"
    folder.mkdir()
    writer.write(folder, OLD)
    old = content(folder / place)
    writer.write(folder, NEW)
    new = content(folder / place)
    assert old
    assert new
    assert old != new
    whole = (old, new, None) if writer.is_folder else (old, new)
    for at in range(200):
        writer.write(folder, OLD)
        assert content(folder / place) == old
        if not killed(at, lambda: writer.write(folder, NEW)):
            break
        assert content(folder / place) in whole
        writer.write(folder, NEW)  # nothing that the dead process left blocks the next one, nor stays
        assert content(folder / place) == new
        assert not list(folder.rglob(".*"))
    assert at >= 5


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_named_and_leaves_the_old_one(tmp_path, name, call, monkeypatch):
    writer, place = WRITERS[name], PLACES.get(name, "out")
    writer.write(tmp_path, OLD)
    old = content(tmp_path / place)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if (name, call) not in {("a moved folder", "fsync"), ("a shorter run", "fsync")}:  # moved by then
            with pytest.raises(
                StorageError, match=r"cannot write .*No space left on device; free space .* run the same"
            ):
                writer.write(tmp_path, NEW)
            assert content(tmp_path / place) == old
    assert not list(tmp_path.rglob(".*"))
    writer.write(tmp_path, NEW)
    assert content(tmp_path / place) != old


def test_a_link_in_the_place_of_a_partial_file_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for process in (os.getpid(), "partial"):
        (tmp_path / f".file.{process}.partial").symlink_to(victim)
    write_durably(tmp_path / "file", b"content")
    assert victim.read_text() == "untouched"
    assert (tmp_path / "file").read_bytes() == b"content"
    assert not (tmp_path / "file").is_symlink()


def test_what_a_living_process_writes_is_left_alone(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        theirs = tmp_path / f".file.{other.pid}.partial"
        theirs.write_text("half")
        write_durably(tmp_path / "file", "ours")
        assert theirs.read_text() == "half"
        other.communicate(b"\n")
    write_durably(tmp_path / "file", "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_with_the_characters_of_a_pattern(tmp_path):
    write_durably(tmp_path / "a[1]*?", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a[1]*?"]


def test_an_error_in_the_block_leaves_the_old_folder(tmp_path):
    into_a_folder(tmp_path, OLD)
    with pytest.raises(TypeError), replacing_folder(tmp_path / "out") as partial:
        (partial / "one").write_text(None)
    assert content(tmp_path / "out") == {"inner/one": OLD.encode(), "two": OLD.encode()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
