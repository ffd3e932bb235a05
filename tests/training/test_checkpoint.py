"""A checkpoint is the old one or the new one, whatever happens while it is written; a bad one is refused."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import resource
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from common.killer import killed
from safetensors.torch import save

from lora_lab.common.errors import CheckpointError, StorageError
from lora_lab.training.checkpoint import MANIFEST, read_checkpoint, write_checkpoint
from lora_lab.training.progress import Counters

SIZE = 1000
OLD = Counters(step=7, last_evaluation=1, train_seconds=1.25, train_tokens=999)
NEW = Counters(step=8, last_evaluation=1, train_seconds=1.5, train_tokens=1111)
IDENTITY = "f" * 64
SIZES = dict.fromkeys(("parameters", "exp_avg", "exp_avg_sq"), SIZE)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SIZE, generator=numbers) for name in ("parameters", "exp_avg", "exp_avg_sq")}


def write_old(folder):
    write_checkpoint(folder, IDENTITY, tensors(7), OLD)


def write_new(folder):
    write_checkpoint(folder, IDENTITY, tensors(8), NEW)


def assert_holds(folder, seed, progress):
    saved, got = read_checkpoint(folder, IDENTITY, SIZES)
    assert got == progress
    assert saved.keys() == tensors(seed).keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in tensors(seed).items())


def data_file(folder) -> Path:
    [path] = folder.glob("*.safetensors")
    return path


def edit_manifest(folder, **changes):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    progress = changes.pop("progress", {})
    path.write_text(json.dumps(manifest | changes | {"progress": manifest["progress"] | progress}))


def forge(folder, payload: bytes, **progress):
    """A data file whose manifest is right about it: only its content can be wrong."""
    data_file(folder).write_bytes(payload)
    edit_manifest(folder, sha256=hashlib.sha256(payload).hexdigest(), progress=progress)


# Round trip


def test_round_trip_and_one_data_file_at_a_time(tmp_path):
    folder = tmp_path / "0003" / "checkpoint"
    assert read_checkpoint(folder, IDENTITY, SIZES) is None
    write_old(folder)
    assert_holds(folder, 7, OLD)
    write_new(folder)
    assert_holds(folder, 8, NEW)
    assert len(list(folder.iterdir())) == 2


def test_a_checkpoint_before_the_first_step_has_no_moments(tmp_path):
    only = {"parameters": torch.ones(SIZE)}
    write_checkpoint(tmp_path, IDENTITY, only, Counters())
    saved, progress = read_checkpoint(tmp_path, IDENTITY, SIZES)
    assert saved.keys() == {"parameters"}
    assert progress == Counters()


def test_the_same_step_written_again_with_other_numbers_takes_the_place_of_the_first(tmp_path):
    write_old(tmp_path)
    write_checkpoint(tmp_path, IDENTITY, tensors(9), OLD)
    assert_holds(tmp_path, 9, OLD)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_special_values_survive(tmp_path, dtype):
    odd = torch.tensor([0.0, -0.0, 1e-45, -1e30, float("inf"), float("nan")], dtype=dtype)
    write_checkpoint(tmp_path, IDENTITY, {name: odd.clone() for name in tensors(0)}, OLD)
    saved, _ = read_checkpoint(tmp_path, IDENTITY, dict.fromkeys(SIZES, len(odd)))
    assert saved["exp_avg"].numpy().tobytes() == odd.numpy().tobytes()


# Kills


def test_a_kill_at_any_disk_operation_leaves_the_old_or_the_new_one(tmp_path):
    seen = []
    for at in range(100):
        folder = tmp_path / str(at)
        write_old(folder)
        if not killed(at, lambda folder=folder: write_new(folder)):
            break
        _, progress = read_checkpoint(folder, IDENTITY, SIZES)
        assert_holds(folder, progress.step, OLD if progress.step == 7 else NEW)
        seen.append(progress.step)
        # Nothing stale blocks what comes next, nor stays.
        write_new(folder)
        assert_holds(folder, 8, NEW)
        assert len(list(folder.iterdir())) == 2
    assert seen == sorted(seen)
    assert seen.count(7) >= 10
    assert seen.count(8) >= 2


def test_a_kill_in_the_very_first_write_leaves_none_or_the_new_one(tmp_path):
    for at in range(100):
        folder = tmp_path / str(at)
        if not killed(at, lambda folder=folder: write_new(folder)):
            break
        if read_checkpoint(folder, IDENTITY, SIZES) is not None:
            assert_holds(folder, 8, NEW)
        write_new(folder)
        assert_holds(folder, 8, NEW)
    assert at >= 10


def test_a_kill_while_the_same_step_is_written_again_leaves_a_whole_one(tmp_path):
    """A GPU does not compute the same bits twice, so step 7 may come again with other numbers."""
    for at in range(100):
        folder = tmp_path / str(at)
        write_old(folder)
        if not killed(at, lambda folder=folder: write_checkpoint(folder, IDENTITY, tensors(9), OLD)):
            break
        saved, _ = read_checkpoint(folder, IDENTITY, SIZES)
        assert any(torch.equal(saved["parameters"], tensors(seed)["parameters"]) for seed in (7, 9))
    assert at >= 10


def test_stale_partial_files_and_orphans_do_not_block(tmp_path):
    write_old(tmp_path)
    for name in (".manifest.json.partial", ".step-00000008.safetensors.partial", "step-00000006-aa.safetensors"):
        (tmp_path / name).write_bytes(b"torn")
    assert_holds(tmp_path, 7, OLD)
    write_new(tmp_path)
    assert_holds(tmp_path, 8, NEW)
    assert len(list(tmp_path.iterdir())) == 2


# A disk that does not take it


@pytest.fixture
def small_files():
    """No file of this process may grow beyond 2000 bytes: a real failing write, without a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_that_fails_is_named_and_leaves_the_old_one(tmp_path, request):
    write_old(tmp_path)
    request.getfixturevalue("small_files")
    with pytest.raises(StorageError, match=r"cannot write .*step-00000008.*File too large; free space") as raised:
        write_new(tmp_path)
    assert "\n" not in str(raised.value)
    assert len(list(tmp_path.iterdir())) == 2, "a partial file takes the space that is missing"
    assert_holds(tmp_path, 7, OLD)


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("successes", [0, 1, 2, 3])
def test_a_full_disk_at_any_point_leaves_a_whole_one_and_goes_on_once_freed(tmp_path, monkeypatch, call, successes):
    write_old(tmp_path)
    real, left = getattr(os, call), [successes]

    def full(*args):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left[0] -= 1
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        if call == "replace" and successes > 1:
            write_new(tmp_path)
        else:
            with pytest.raises(StorageError, match=r"No space left on device; free space .* run the same command"):
                write_new(tmp_path)
    saved = read_checkpoint(tmp_path, IDENTITY, SIZES)
    assert_holds(tmp_path, saved[1].step, saved[1])
    write_new(tmp_path)
    assert_holds(tmp_path, 8, NEW)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "0001").write_text("a file in the way")
    with pytest.raises(StorageError, match=r"cannot write .*0001/checkpoint.*Not a directory; free space or fix"):
        write_new(tmp_path / "0001" / "checkpoint")


# What is refused


def assert_refused(folder, problem):
    with pytest.raises(CheckpointError, match=problem) as raised:
        read_checkpoint(folder, IDENTITY, SIZES)
    message = str(raised.value)
    assert str(folder) in message
    assert message.endswith("delete this folder to train the trial from its beginning")
    assert "\n" not in message
    assert len(message) < 700


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"file": 3}',
        b"[" * 60_000,
        json.dumps({"file": "step-1.safetensors", "sha256": "", "identity": IDENTITY}).encode(),
    ],
    ids=range(9),
)
def test_a_torn_or_foreign_manifest(tmp_path, content):
    write_old(tmp_path)
    (tmp_path / MANIFEST).write_bytes(content)
    assert_refused(tmp_path, "its manifest is not readable")


def test_a_manifest_cut_anywhere(tmp_path):
    write_old(tmp_path)
    whole = (tmp_path / MANIFEST).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / MANIFEST).write_bytes(whole[:length])
        assert_refused(tmp_path, "its manifest is not readable")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("step", -1, "impossible"),
        ("step", 1.5, "not readable"),
        ("step", "7", "not readable"),
        ("step", None, "not readable"),
        ("train_seconds", -0.1, "impossible"),
        ("train_seconds", float("nan"), "impossible|not readable"),
        ("train_seconds", float("inf"), "impossible|not readable"),
        ("last_evaluation", [], "not readable"),
        ("train_tokens", True, "not readable"),
    ],
)
def test_a_manifest_of_impossible_progress(tmp_path, key, value, problem):
    write_old(tmp_path)
    edit_manifest(tmp_path, progress={key: value})
    assert_refused(tmp_path, problem)


def test_an_unknown_key_in_the_manifest(tmp_path):
    write_old(tmp_path)
    edit_manifest(tmp_path, **{"evil\nkey" * 1000: 1})
    assert_refused(tmp_path, "not readable")


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "..", "", ".", "a\0b", "step-1.pkl", "step-1.safetensors\n", MANIFEST],
)
def test_a_manifest_that_points_elsewhere(tmp_path, name):
    folder = tmp_path / "checkpoint"
    write_old(folder)
    (tmp_path / "secret.safetensors").write_bytes(data_file(folder).read_bytes())
    edit_manifest(folder, file=name)
    assert_refused(folder, "its manifest is not readable")


def test_links_are_not_followed(tmp_path):
    folder = tmp_path / "checkpoint"
    write_old(folder)
    data = data_file(folder)
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    assert_refused(folder, "is a link or no plain file")
    (folder / MANIFEST).rename(tmp_path / "manifest")
    (folder / MANIFEST).symlink_to(tmp_path / "manifest")
    assert_refused(folder, "manifest.json is a link or no plain file")
    (tmp_path / "manifest").unlink()
    assert_refused(folder, "manifest.json is missing")


def test_a_pipe_in_the_place_of_the_manifest_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / MANIFEST)
    assert_refused(tmp_path, "no plain file")


def test_missing_truncated_and_changed_data(tmp_path):
    write_old(tmp_path)
    data = data_file(tmp_path)
    whole = data.read_bytes()
    data.write_bytes(whole[:-1])
    assert_refused(tmp_path, "does not have the hash")
    data.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    assert_refused(tmp_path, "does not have the hash")
    data.unlink()
    assert_refused(tmp_path, "is missing")
    data.write_bytes(whole)
    assert_holds(tmp_path, 7, OLD)


class Canary:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_forged_data_is_not_executed_or_taken(tmp_path):
    folder, canary = tmp_path / "checkpoint", tmp_path / "canary"
    write_old(folder)
    whole = data_file(folder).read_bytes()
    torch.save(Canary(canary), tmp_path / "pickle")
    for payload in (
        pickle.dumps(Canary(canary)),
        (tmp_path / "pickle").read_bytes(),
        b"",
        whole[: len(whole) // 2],
        (2**62).to_bytes(8, "little") + whole[8:],
        whole + b"more",
    ):
        forge(folder, payload)
        assert_refused(folder, "is not a safetensors file")
    assert not canary.exists()


@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"parameters": torch.ones(SIZE)},
        {"weights": torch.ones(SIZE)},
        tensors(1) | {"more": torch.ones(SIZE)},
        tensors(1) | {"parameters": torch.ones(1)},
        tensors(1) | {"exp_avg": torch.ones(SIZE // 2, 2)},
    ],
    ids=lambda forged: "+".join(forged) or "nothing",
)
def test_other_tensors_than_the_adapters_are_refused(tmp_path, forged):
    write_old(tmp_path)
    forge(tmp_path, save(forged))
    assert_refused(tmp_path, f"the adapter has {SIZE} parameters, but step-.* holds|at most|not a safetensors")


def test_bloated_data_is_refused_before_it_is_read(tmp_path):
    write_old(tmp_path)
    with data_file(tmp_path).open("r+b") as file:
        file.truncate(2**40)  # sparse: it takes no space, but reading it would take a terabyte
    assert_refused(tmp_path, "1099511627776 bytes where at most")


def test_the_checkpoint_of_another_configuration(tmp_path):
    write_checkpoint(tmp_path, "0" * 64, tensors(7), OLD)
    assert_refused(tmp_path, "another configuration or other data")


def test_the_manifest_is_plain_json(tmp_path):
    write_old(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert manifest["progress"] == asdict(OLD)
    assert manifest["sha256"] == hashlib.sha256(data_file(tmp_path).read_bytes()).hexdigest()
    assert manifest["file"] == data_file(tmp_path).name
