"""Checkpoints of single trials: all or nothing on disk, safetensors and JSON only.

A checkpoint exists when its manifest does. The data file gets a name of its own and is on the disk before the
manifest that names it takes the old manifest's place; so a kill at any moment leaves the old or the new one.
What is read is checked before it is used: a folder may be damaged, foreign, or made to do harm.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save

from lora_lab.common.errors import CheckpointError
from lora_lab.common.files import storage_errors, write_durably
from lora_lab.study.section import Settings
from lora_lab.training.progress import Counters  # noqa: TC001 -- pydantic reads the annotation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.datasets import TokenizedSplits

MANIFEST = "manifest.json"
BEST = "best_parameters"
"""The parameters of the trial's best evaluation, where it is to leave those; as many as `parameters`."""
MAX_HEADER_BYTES = 2**16


class _Manifest(Settings):
    file: Annotated[str, Field(pattern=r"^step-[0-9a-f-]+\.safetensors$")]
    sha256: str
    identity: str
    progress: Counters


def checkpoint_identity(config: TrialConfig, data: TokenizedSplits) -> str:
    """What a checkpoint belongs to: the configuration and the very examples, as 64 hexadecimal digits."""
    text = config.model_dump_json() + data.train.fingerprint + data.eval.fingerprint
    return hashlib.sha256(text.encode()).hexdigest()


def write_checkpoint(folder: Path, identity: str, tensors: dict[str, Tensor], counters: Counters) -> None:
    """Replace the checkpoint in `folder` by this one.

    Args:
        folder: The trial's checkpoint folder, made where it is missing.
        identity: What must agree on resume: a hash of the trial's configuration and data.
        tensors: `parameters`, and from the first optimizer step on the optimizer's state.
        counters: How far the trial has come.

    Raises:
        StorageError: it cannot be written (disk full, no permission); the old checkpoint stays whole.
    """
    payload = save(tensors)
    digest = hashlib.sha256(payload).hexdigest()
    # The digest makes the name this content's own, so that the file of the old manifest is never replaced.
    data = folder / f"step-{counters.step:08d}-{digest[:16]}.safetensors"
    manifest = _Manifest(file=data.name, sha256=digest, identity=identity, progress=counters)
    write_durably(data, payload)
    write_durably(folder / MANIFEST, manifest.model_dump_json(indent=2).encode())
    with storage_errors(folder):
        for other in folder.iterdir():
            if other.name != data.name and other.suffix in (".safetensors", ".partial"):
                other.unlink()


def read_checkpoint(folder: Path, identity: str, sizes: Mapping[str, int]) -> tuple[dict[str, Tensor], Counters] | None:
    """The checkpoint in `folder`, or None where there is none.

    Args:
        folder: The trial's checkpoint folder.
        identity: What it must have been written for.
        sizes: Elements of each tensor of the trial's state; all but `parameters` exist from the first step on.

    Raises:
        CheckpointError: it is damaged, or belongs to another configuration.
    """
    if not os.path.lexists(folder / MANIFEST):
        return None
    manifest = _read_manifest(folder)
    if manifest.identity != identity:
        raise _damaged(folder, "it was written for another configuration or other data")
    expected = {name: (size,) for name, size in sizes.items() if name == "parameters" or manifest.progress.step}
    if manifest.progress.best is not None:
        expected[BEST] = expected["parameters"]
    at_most = sum(size for (size,) in expected.values()) * 8 + MAX_HEADER_BYTES
    payload = _read(folder, manifest.file, at_most=at_most)
    if hashlib.sha256(payload).hexdigest() != manifest.sha256:
        raise _damaged(folder, f"{manifest.file} does not have the hash that the manifest states")
    try:
        tensors = load(payload)
    except SafetensorError as error:
        raise _damaged(folder, f"{manifest.file} is not a safetensors file ({error})") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shapes != expected:
        count = sizes["parameters"]
        raise _damaged(folder, f"the adapter has {count} parameters, but {manifest.file} holds {shapes}")
    return tensors, manifest.progress


def _read_manifest(folder: Path) -> _Manifest:
    try:
        manifest = _Manifest.model_validate_json(_read(folder, MANIFEST, at_most=MAX_HEADER_BYTES))
    except ValidationError as error:
        first = error.errors()[0]
        place = ascii(".".join(str(key) for key in first["loc"]))[:80]
        raise _damaged(folder, f"its manifest is not readable ({place}: {first['msg']})") from error
    if not all(0 <= figure < math.inf for figure in _numbers(asdict(manifest.progress))):
        raise _damaged(folder, f"its manifest states an impossible {manifest.progress}")
    return manifest


def _numbers(figures: Mapping[str, Any]) -> Iterator[float]:
    """All numbers in figures that hold figures; of scores, which may be negative, their size."""
    for name, figure in figures.items():
        if isinstance(figure, dict):
            yield from map(abs, figure.values()) if name == "scores" else _numbers(figure)
        elif figure is not None:
            yield figure


def _read(folder: Path, name: str, *, at_most: int) -> bytes:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        raise _damaged(folder, f"{name} is {'missing' if not path.exists() else 'a link or no plain file'}")
    try:
        if path.stat().st_size > at_most:
            raise _damaged(folder, f"{name} has {path.stat().st_size} bytes where at most {at_most} can be right")
        return path.read_bytes()
    except OSError as error:
        raise _damaged(folder, f"{name} cannot be read ({error.strerror})") from error


def _damaged(folder: Path, problem: str) -> CheckpointError:
    return CheckpointError(f"checkpoint {folder}: {problem}; delete this folder to train the trial from its beginning")
