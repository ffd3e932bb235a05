"""Every training setting in a pack gives what it gives alone with `transformers.Trainer` + `peft`."""

from __future__ import annotations

import pytest
from oracle import largest_drift
from samples import sample

# Data settings, LoRA settings, training settings: one or two of the things that users set in each
FEATURES = {
    "sgd": ({}, {}, {"optim": "sgd", "learning_rate": 0.3, "lr_scheduler_type": "linear"}),
    "sgd decay": ({}, {"r": 4}, {"optim": "sgd", "learning_rate": 0.3, "weight_decay": 0.1, "max_grad_norm": 0.05}),
    "loraplus": ({}, {}, {"loraplus_lr_ratio": 16.0, "learning_rate": 3e-4}),
    "loraplus decay": (
        {},
        {"r": 4, "target_modules": "attention"},
        {"loraplus_lr_ratio": 4.0, "weight_decay": 0.1, "lr_scheduler_type": "cosine", "warmup_steps": 3},
    ),
    "loraplus sgd": ({}, {}, {"loraplus_lr_ratio": 2.0, "optim": "sgd", "learning_rate": 0.1}),
    "wsd": (
        {},
        {},
        {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 4, "decay_steps": 9, "learning_rate": 3e-3},
    ),
    "checkpointing": ({}, {"target_modules": "all-linear+head"}, {"gradient_checkpointing": True}),
    "max_steps": (
        {},
        {},
        {"max_steps": 20, "lr_scheduler_type": "linear", "gradient_accumulation_steps": 2, "seed": 5},
    ),
    "packing": ({"packing": True}, {}, {"per_device_train_batch_size": 2}),
    "packing accumulation": (
        {"packing": True, "max_length": 56},
        {"r": 16, "target_modules": "all-linear+head"},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "weight_decay": 0.1, "seed": 3},
    ),
    "decay clip": ({}, {"use_rslora": True, "lora_alpha": 5}, {"weight_decay": 0.3, "max_grad_norm": 0.05}),
    "orthogonal": (
        {},
        {"init_lora_weights": "orthogonal"},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 6, "loraplus_lr_ratio": 8.0},
    ),
    "gaussian": ({}, {"init_lora_weights": "gaussian", "r": 2}, {"lr_scheduler_type": "cosine"}),
    "random b": ({}, {"init_lora_weights": False}, {"gradient_accumulation_steps": 3, "optim": "sgd"}),
}
STEPS = 36


def feature(lab, name):
    data, lora, training = FEATURES[name]
    if "max_steps" not in training:
        training = {"max_steps": STEPS} | training
    return lab.trial(lora=lora, data=data, **training)


def assert_equal(run, alone, loss=1e-9, adapter=1e-8):
    assert len(run.losses) == len(alone.losses) >= 20
    assert max(abs(a - b) for a, b in zip(run.losses, alone.losses, strict=True)) < loss
    assert largest_drift(run.adapter, alone.adapter) < adapter
    assert abs(alone.losses[0] - alone.losses[-1]) > 1e-3, "nothing was trained"


@pytest.mark.slow
def test_all_features_in_one_pack_equal_trainer(lab64):
    """Trials that keep their activations, and then those that do not: a pack does one or the other."""
    runs = {}
    for recomputes in (False, True):
        names = [name for name in FEATURES if FEATURES[name][2].get("gradient_checkpointing", False) == recomputes]
        if recomputes:
            names.append("packing")
        runs |= dict(zip(names, lab64.packed([feature(lab64, name) for name in names]), strict=True))
    for name, run in runs.items():
        assert_equal(run, lab64.alone(feature(lab64, name)))


@pytest.mark.parametrize(
    "name",
    sample(["sgd decay", "loraplus decay", "wsd", "checkpointing", "packing accumulation"], ["packing accumulation"]),
)
def test_a_feature_alone_in_the_packed_engine_equals_trainer(lab64, name):
    config = feature(lab64, name)
    [run] = lab64.packed([config])
    assert_equal(run, lab64.alone(config))


EIGHT_BIT = [
    # r 128 gives A's of 6144 elements and more, whose moments are kept in 8 bits; r 4 only of fewer than 4096
    ({"r": 128, "target_modules": "mlp"}, {"learning_rate": 1e-3}),
    ({"r": 4}, {"weight_decay": 0.1, "lr_scheduler_type": "cosine"}),
    ({"r": 100, "target_modules": "attention", "layers": "last_half"}, {"loraplus_lr_ratio": 4.0, "seed": 1}),
]


@pytest.mark.slow
def test_eight_bit_moments_equal_trainer(lab32):
    """bitsandbytes runs on a CPU too. A rounding in the last bit may move a moment to its neighboring code."""
    configs = [lab32.trial(lora=lora, optim="adamw_8bit", max_steps=24, **training) for lora, training in EIGHT_BIT]
    for config, run in zip(configs, lab32.packed(configs), strict=True):
        assert_equal(run, lab32.alone(config), loss=1e-4, adapter=1e-2)
    exact = lab32.packed([config.model_copy(update={"training": _exact(config.training)}) for config in configs[:1]])
    assert exact[0].losses != lab32.packed(configs[:1])[0].losses


def _exact(training):
    return training.model_copy(update={"optim": "adamw_torch"})
