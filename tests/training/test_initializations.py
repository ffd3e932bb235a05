"""Every initialization of the table is one that PEFT makes."""

from __future__ import annotations

import pytest
import torch

from lora_lab.study.initializations import INITIALIZATIONS
from lora_lab.study.settings import LoraSettings
from lora_lab.study.targets import LinearMap, LinearShape
from lora_lab.training.base.adapters import initial_weights, lora_config

NAME = "model.layers.0.mlp.up_proj"
LINEARS = LinearMap(shapes={NAME: LinearShape(64, 48)}, head=None, num_layers=1, total_parameters=64 * 48)


@pytest.mark.parametrize("init", INITIALIZATIONS)
def test_peft_takes_every_initialization_with_its_settings(init):
    config = lora_config(LoraSettings(init_lora_weights=init), LINEARS)
    assert config.init_lora_weights == init
    assert bool(config.loftq_config) == (init == "loftq")


@pytest.mark.parametrize("init", [init for init, facts in INITIALIZATIONS.items() if not facts.changes_base])
def test_the_spread_of_a_depends_on_the_rank_where_the_table_says_so(init):
    """With 64 inputs, and ranks 4 and 32: over many draws, not by their formula."""
    spread = {}
    for r in (4, 32):
        lora = LoraSettings(r=r, init_lora_weights=init)
        drawn = [initial_weights(lora, LINEARS, seed, torch.float32)[NAME].a for seed in range(20)]
        spread[r] = float(torch.cat([a.flatten() for a in drawn]).std())
    ratio = spread[4] / spread[32]
    assert (ratio > 2) == bool(INITIALIZATIONS[init].rank_dependence), ratio
    assert 0.8 < ratio < 1.25 or ratio > 2
