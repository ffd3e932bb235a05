"""A trial in a pack gives what it gives alone with `transformers.Trainer` + `peft`."""

from __future__ import annotations

import pytest
from oracle import ON_CPU, Lab, largest_drift

MIXED = [
    # LoRA settings, training settings: ranks, scalings, targets, layers, rates, schedules, batches differ
    ({"r": 8, "alpha_ratio": 2}, {"learning_rate": 1e-3}),
    ({"r": 4, "lora_alpha": 16, "target_modules": "attention"}, {"learning_rate": 3e-3, "seed": 1}),
    ({"r": 16, "target_modules": "mlp"}, {"per_device_train_batch_size": 8, "weight_decay": 0.1}),
    ({"r": 32, "layers": "last_half"}, {"per_device_train_batch_size": 2, "lr_scheduler_type": "cosine"}),
    ({"r": 2, "use_rslora": True, "lora_alpha": 3}, {"seed": 7, "max_grad_norm": 0.1}),
    ({"r": 64, "target_modules": "all-linear+head"}, {"learning_rate": 5e-4}),
    ({"r": 8, "layers": (1, 2)}, {"lr_scheduler_type": "linear", "warmup_steps": 5}),
    ({"r": 1, "target_modules": ("q_proj", "v_proj")}, {"gradient_accumulation_steps": 3, "seed": 3}),
    ({"r": 8, "target_modules": ("lm_head",)}, {"learning_rate": 1e-2}),
    ({"r": 5, "layers": "every_2nd"}, {"max_grad_norm": 0.0}),
    ({"r": 16, "init_lora_weights": "gaussian"}, {"per_device_train_batch_size": 3}),
    ({"r": 8, "init_lora_weights": False}, {"learning_rate": 2e-4}),
    ({"r": 12, "target_modules": r".*\.(down|up)_proj"}, {"adam_beta1": 0.8, "adam_beta2": 0.95}),
    ({"r": 8, "init_lora_weights": "orthogonal"}, {"seed": 11}),
    ({"r": 128, "lora_alpha": 32}, {"learning_rate": 3e-4, "lr_scheduler_type": "constant_with_warmup",
                                    "warmup_steps": 10}),
    ({"r": 3, "layers": "first_half", "target_modules": "attention"}, {"per_device_train_batch_size": 6}),
]  # fmt: skip
STEPS = 50
ROWS = 24


def mixed_trials(lab: Lab):
    trials = []
    for lora, training in MIXED:
        batch = training.get("per_device_train_batch_size", 4) * training.get("gradient_accumulation_steps", 1)
        epochs = -(-STEPS * batch // ROWS)
        trials.append(lab.trial(lora=lora, num_train_epochs=epochs, **training))
    return trials


@pytest.fixture(scope="module")
def oracle64(base_folder, data_folder, tmp_path_factory):
    lab = Lab(base_folder, data_folder, tmp_path_factory.mktemp("oracle64"), "float64")
    return [lab.alone(config) for config in mixed_trials(lab)]


@pytest.fixture(scope="module")
def oracle32(base_folder, data_folder, tmp_path_factory):
    lab = Lab(base_folder, data_folder, tmp_path_factory.mktemp("oracle32"), "float32")
    return [lab.alone(config) for config in mixed_trials(lab)]


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_float64_loss_and_adapter_equal_trainer(lab64, oracle64, k):
    runs = lab64.packed(mixed_trials(lab64)[:k])
    for run, alone in zip(runs, oracle64, strict=False):
        assert len(run.losses) == len(alone.losses) >= STEPS
        assert max(abs(a - b) for a, b in zip(run.losses, alone.losses, strict=True)) < 1e-9
        assert largest_drift(run.adapter, alone.adapter) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2, 4, 8, 16])
def test_float32_loss_equals_trainer_over_20_steps(lab32, oracle32, k):
    runs = lab32.packed(mixed_trials(lab32)[:k])
    for run, alone in zip(runs, oracle32, strict=False):
        assert max(abs(a - b) for a, b in zip(run.losses[:20], alone.losses[:20], strict=True)) < (
            1e-5 if ON_CPU else 1e-4
        )


@pytest.mark.slow
def test_every_single_trial_alone_in_the_packed_engine_equals_trainer(lab64, oracle64):
    for config, alone in zip(mixed_trials(lab64), oracle64, strict=True):
        [run] = lab64.packed([config])
        assert max(abs(a - b) for a, b in zip(run.losses, alone.losses, strict=True)) < 1e-9
