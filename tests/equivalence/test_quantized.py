"""On a quantized base, too, a trial in a pack gives what `Trainer` + `peft` give on the same base alone."""

from __future__ import annotations

import pytest
from oracle import ON_CPU, Lab, largest_drift

BASES = [
    {"quantization": "nf4"},
    {"quantization": "nf4", "double_quant": True},
    {"quantization": "fp4"},
    {"quantization": "int8"},
]
MIXED = [
    ({"r": 8}, {"learning_rate": 1e-3}),
    ({"r": 32, "target_modules": "attention"}, {"learning_rate": 3e-3, "seed": 1}),
    ({"r": 4, "target_modules": "mlp", "layers": "last_half"}, {"lr_scheduler_type": "cosine", "seed": 2}),
]
EPOCHS = 9  # of 6 steps each


TRAINED_IN_PACKS = BASES if ON_CPU else [base for base in BASES if base["quantization"] != "int8"]


@pytest.mark.slow
@pytest.mark.parametrize("base", TRAINED_IN_PACKS, ids=lambda base: "-".join(map(str, base.values())))
def test_packs_on_a_quantized_base_equal_trainer(base_folder, data_folder, tmp_path, base):
    lab = Lab(base_folder, data_folder, tmp_path, "float32", **base)
    configs = [lab.trial(lora=lora, num_train_epochs=EPOCHS, **training) for lora, training in MIXED]
    packed = lab.packed(configs)
    for config, run in zip(configs, packed, strict=True):
        alone = lab.alone(config)
        assert len(run.losses) == len(alone.losses) == 54
        assert max(abs(a - b) for a, b in zip(run.losses, alone.losses, strict=True)) < 1e-4
        assert largest_drift(run.adapter, alone.adapter) < 1e-2


def test_the_quantized_base_is_another_model_than_the_plain_one(base_folder, data_folder, tmp_path):
    losses = {}
    for number, base in enumerate([{}, *BASES]):
        lab = Lab(base_folder, data_folder, tmp_path / str(number), "float32", **base)
        losses[str(base)] = lab.engine().base_losses(lab.trial())[0]
    assert len(set(losses.values())) == len(losses)
