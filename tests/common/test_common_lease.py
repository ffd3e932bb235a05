"""A lease on a file."""

from __future__ import annotations

import json
import os

import pytest

from lora_lab.common.errors import StudyLockedError
from lora_lab.common.lease import lease


def test_the_lease_names_its_holder_and_ends_with_it(tmp_path):
    path = tmp_path / "coordinator.lock"
    with lease(path, "the study"):
        for _ in range(2):
            with (
                pytest.raises(StudyLockedError, match=f"works on the study .process {os.getpid()} on .*--fresh"),
                lease(path, "the study"),
            ):
                pass
    with lease(path, "the study"):
        assert json.loads(path.with_suffix(".json").read_text())["pid"] == os.getpid()
    assert not path.with_suffix(".json").exists()


def test_a_lease_file_of_a_dead_holder_does_not_block(tmp_path):
    path = tmp_path / "coordinator.lock"
    path.write_text("")
    path.with_suffix(".json").write_text("{torn")
    with lease(path, "the study"):
        assert json.loads(path.with_suffix(".json").read_text())["pid"] == os.getpid()
