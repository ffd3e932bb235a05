"""Checkpoints of single trials: all or nothing on disk, safetensors and JSON only.

A checkpoint exists when its manifest does. The data file gets a name of its own and is on the disk before the
manifest that names it takes the old manifest's place; so a kill at any moment leaves the old or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load, save

from lora_lab.study.errors import CheckpointError, StorageError
from lora_lab.training.slot import Progress

if TYPE_CHECKING:
    from torch import Tensor

MANIFEST = "manifest.json"


def write_checkpoint(folder: Path, identity: str, tensors: dict[str, Tensor], progress: Progress) -> None:
    """Replace the checkpoint in `folder` by this one.

    Args:
        folder: The trial's checkpoint folder, made where it is missing.
        identity: What must agree on resume: a hash of the trial's configuration and data.
        tensors: Parameters and optimizer moments.
        progress: How far the trial has come.

    Raises:
        StorageError: it cannot be written (disk full, no permission); the old checkpoint stays whole.
    """
    payload = save(tensors)
    data = folder / f"step-{progress.step:08d}.safetensors"
    manifest = {
        "file": data.name,
        "sha256": hashlib.sha256(payload).hexdigest(),
        "identity": identity,
        "progress": asdict(progress),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(data, payload)
        write_durably(folder / MANIFEST, json.dumps(manifest, indent=2).encode())
        for other in folder.iterdir():
            if other.name not in (data.name, MANIFEST):
                other.unlink()
    except OSError as error:
        raise StorageError(
            f"cannot write the checkpoint {folder}: {error.strerror}; free space or fix permissions, and run "
            "the same command again: it goes on from the last checkpoint"
        ) from error


def write_durably(path: Path, payload: bytes) -> None:
    """Write a file so that `path` holds the old or the new content, also after a power cut."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)  # noqa: PTH105 -- the atomic rename is the point
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_checkpoint(folder: Path, identity: str) -> tuple[dict[str, Tensor], Progress] | None:
    """The checkpoint in `folder`, or None where there is none.

    Raises:
        CheckpointError: it is damaged, or belongs to another configuration.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text())
        name, digest = manifest["file"], manifest["sha256"]
        progress = Progress(**manifest["progress"])
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, f"its manifest is not readable ({error})") from error
    if Path(name).name != name:
        raise _damaged(folder, f"its manifest names a file outside the folder ({name!r})")
    try:
        payload = (folder / name).read_bytes()
    except OSError as error:
        raise _damaged(folder, f"{name} cannot be read ({error.strerror})") from error
    if hashlib.sha256(payload).hexdigest() != digest:
        raise _damaged(folder, f"{name} does not have the hash that the manifest states")
    if manifest["identity"] != identity:
        raise _damaged(folder, "it was written for another configuration or other data")
    try:
        return load(payload), progress
    except SafetensorError as error:
        raise _damaged(folder, f"{name} is not a safetensors file ({error})") from error


def _damaged(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder}: {problem}; delete this folder to train the trial from its beginning")
