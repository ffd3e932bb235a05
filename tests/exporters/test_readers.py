"""What a trainer is told is what the trial was: every export is read back, and only what was warned about differs."""

from __future__ import annotations

import pytest
from export_made import exported
from readers import READERS, read, written
from samples import sample

from lora_lab.exporters.handover import hand_over

CONFIGURATIONS = {
    "plain": {},
    "qlora": {"model": {"quantization": "nf4", "double_quant": True}, "training": {"gradient_checkpointing": True}},
    "fp4": {"model": {"quantization": "fp4"}},
    "int8": {"model": {"quantization": "int8"}},
    "bfloat16": {"model": {"dtype": "bfloat16"}},
    "float16": {"model": {"dtype": "float16", "revision": "v2"}},
    "float64": {"model": {"dtype": "float64"}},
    "rslora": {"lora": {"use_rslora": True, "layers": "all", "target_modules": "all-linear"}},
    "one module": {"lora": {"target_modules": ["q_proj"], "layers": "all"}},
    "one module of one layer": {"lora": {"target_modules": r"model\.layers\.1\.mlp\.down_proj", "layers": "all"}},
    "names that no endings say": {
        "lora": {"target_modules": r".*(0\.self_attn\.q_proj|2\.mlp\.up_proj)", "layers": "all"}
    },
    "every second layer": {"lora": {"target_modules": "mlp", "layers": "every_2nd"}},
    "head": {"lora": {"target_modules": "all-linear+head", "layers": "all"}},
    "dora": {"lora": {"use_dora": True}},
    "fractional alpha": {"lora": {"lora_alpha": 22.5}},
    "no init": {"lora": {"init_lora_weights": False}},
    "gaussian": {"lora": {"init_lora_weights": "gaussian", "lora_dropout": 0.1}},
    "pissa": {"lora": {"init_lora_weights": "pissa"}},
    "loftq": {"lora": {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 8}}},
    "bias": {"lora": {"bias": "all"}},
    "modules to save": {"lora": {"modules_to_save": ["embed_tokens", "lm_head"]}},
    "lora+": {"training": {"loraplus_lr_ratio": 16.0, "optim": "sgd"}},
    "warm-up as a share": {"training": {"warmup_steps": 0, "warmup_ratio": 0.3, "optim": "adamw_8bit"}},
    "one step of warm-up": {"training": {"warmup_steps": 1}},
    "decay": {"training": {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.3}},
    "constant": {"training": {"lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0}},
    "steps": {"training": {"max_steps": 4, "eval_steps": 2, "logging_steps": 2, "per_device_eval_batch_size": 3}},
    "packing": {"data": {"packing": True}},
    "best checkpoint": {"training": {"load_best_model_at_end": True, "max_steps": 4, "eval_steps": 2}},
    "patience": {"training": {"load_best_model_at_end": True, "early_stopping_patience": 3}},
    "threshold": {
        "training": {
            "load_best_model_at_end": True,
            "early_stopping_patience": 3,
            "early_stopping_threshold": 0.01,
        }
    },
}


QUICK = [
    *("plain", "qlora", "float16", "one module of one layer", "head", "dora", "loftq", "modules to save", "lora+"),
    *("warm-up as a share", "decay", "steps", "packing", "best checkpoint", "threshold"),
]


@pytest.mark.parametrize("name", sample(CONFIGURATIONS, QUICK))
@pytest.mark.parametrize("target", READERS)
def test_an_export_says_what_the_trial_was(data, tmp_path, target, name):
    trial = exported(data, **CONFIGURATIONS[name])
    export = hand_over(trial, target, tmp_path)
    if export.refusals:
        assert export.folder is None
        assert list(tmp_path.iterdir()) == []
        return
    assert export.folder == tmp_path / target
    meant, found = written(trial), read(target, export.folder, trial)
    warned = {remark.field for remark in export.warnings}
    compared = 0
    for section in type(meant).model_fields:
        for field, value in getattr(meant, section):
            if f"{section}.{field}" not in warned:
                compared += 1
                assert getattr(getattr(found, section), field) == value, f"{section}.{field}"
    assert compared > 40


def test_every_configuration_has_a_target_that_takes_it(data, tmp_path):
    for name, changes in CONFIGURATIONS.items():
        trial = exported(data, **changes)
        assert hand_over(trial, "peft", tmp_path).folder is not None, name
