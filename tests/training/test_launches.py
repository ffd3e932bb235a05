"""How many kernels a training step launches: as many for a block of trials as for one, and none that waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # every pack is traced in a process of its own

PER_LAYER = 1.05
"""How many times the launches of one trial those of a block may be."""


@pytest.fixture(scope="module")
def counted():
    """Launches of a step in a decoder layer, by pack."""
    script = Path(__file__).with_name("strict_step.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=script.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("pack", ["8", "16"])
def test_a_block_launches_what_one_trial_launches(counted, pack):
    assert counted[f"{pack}, merged"] <= PER_LAYER * counted["1, single"]


def test_other_scalings_cost_one_launch_a_module(counted):
    modules = 7
    assert counted["8 scalings, merged"] <= counted["8, merged"] + modules


def test_a_pack_of_four_ranks_launches_what_one_of_each_launches(counted):
    assert counted["16 of 4 ranks, merged"] <= PER_LAYER * counted["4 ranks, single"]


def test_slot_after_slot_costs_launches(counted):
    """Otherwise the others would show nothing."""
    assert counted["8, single"] > 2 * counted["1, single"]


def test_the_count_is_held_to_what_a_gpu_asks_for(counted):
    assert counted["refused"].pop("none") is False
    assert all(counted["refused"].values()), counted["refused"]
