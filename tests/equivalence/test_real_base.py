"""On a real base, too, a trial in a pack gives what `Trainer` + `peft` give: SmolLM2-135M-Instruct, 20 steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle import Lab, largest_drift

from lora_lab.study.data_settings import DatasetRef

REAL = Path(__file__).parents[2] / "real"
BASE, DATA = REAL / "SmolLM2-135M-Instruct", REAL / "python-docs"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not (BASE / "config.json").is_file(), reason=f"{BASE} is missing: run `make real-base`"),
]

MIXED = [
    ({"r": 16}, {"learning_rate": 1e-3, "per_device_train_batch_size": 2}),
    ({"r": 4, "target_modules": "attention"}, {"learning_rate": 3e-3, "per_device_train_batch_size": 1, "seed": 1}),
    ({"r": 64, "layers": "last_half"}, {"lr_scheduler_type": "cosine", "per_device_train_batch_size": 2, "seed": 2}),
    ({"r": 8, "target_modules": "mlp", "use_rslora": True}, {"per_device_train_batch_size": 3, "weight_decay": 0.1}),
]
STEPS = 20
TOLERANCE = 1e-4
"""Relative, of every step's loss; in float32, so that the order of sums shows."""


@pytest.fixture(scope="module", params=["none", "nf4"])
def lab(request, tmp_path_factory):
    return Lab(BASE, DATA, tmp_path_factory.mktemp(request.param), "float32", quantization=request.param)


@pytest.fixture(scope="module")
def trials(lab):
    rows = {
        "train": DatasetRef(path=str(DATA), max_examples=64),
        "eval": DatasetRef(path=str(DATA), split="validation", max_examples=2),
        "max_length": 64,
    }
    return [lab.trial(lora, data=rows, max_steps=STEPS, **training) for lora, training in MIXED]


@pytest.fixture(scope="module")
def alone(lab, trials):
    return [lab.alone(trial) for trial in trials]


def test_a_pack_on_smollm2_equals_trainer(lab, trials, alone):
    for number, (packed, oracle) in enumerate(zip(lab.packed(trials), alone, strict=True)):
        assert len(packed.losses) == len(oracle.losses) == STEPS
        error = max(abs(a - b) / b for a, b in zip(packed.losses, oracle.losses, strict=True))
        drift = largest_drift(packed.adapter, oracle.adapter)
        print(f"trial {number}: losses {oracle.losses[0]:.4f} to {oracle.losses[-1]:.4f}, off by {error:.1e}; "
              f"adapter by {drift:.1e}")  # fmt: skip
        assert error < TOLERANCE
        assert drift < 1e-2
