"""Trials of one shape, which act as one block where that is faster, equal each alone with `Trainer` + `peft`."""

from __future__ import annotations

import pytest
from oracle import largest_drift

from lora_lab.training.packed.blocks import SETTING

ONE_SHAPE = [
    ({"lora_alpha": 16}, {"learning_rate": 1e-3}),
    ({"lora_alpha": 3}, {"learning_rate": 3e-3, "seed": 1, "lr_scheduler_type": "cosine"}),
    ({"use_rslora": True}, {"weight_decay": 0.1, "seed": 2, "max_grad_norm": 0.05}),
]


@pytest.mark.slow
def test_a_block_of_trials_equals_trainer(lab64, monkeypatch):
    """All but the shape differs in three of them, and a fourth leaves early."""
    monkeypatch.setenv(SETTING, "merged")
    configs = [lab64.trial(lora=lora, max_steps=10, **training) for lora, training in ONE_SHAPE]
    runs = lab64.packed([*configs[:2], lab64.trial(seed=9, max_steps=4), configs[2]])
    for config, run in zip(configs, [*runs[:2], runs[3]], strict=True):
        alone = lab64.alone(config)
        assert len(run.losses) == len(alone.losses) == 10
        assert max(abs(a - b) for a, b in zip(run.losses, alone.losses, strict=True)) < 1e-9
        assert largest_drift(run.adapter, alone.adapter) < 1e-8
