"""Every refusal and every warning, by field and target."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from export_made import exported
from test_readers import CONFIGURATIONS

from lora_lab.exporters.handover import hand_over
from lora_lab.exporters.table import TABLE, judge
from lora_lab.exporters.targets import SERVERS, TARGETS, TRAINERS

REFUSED = {
    "float64": {"trl", "axolotl", "llama-factory", "unsloth", "ms-swift"},
    "head": {"trl", "unsloth", "llama-cpp", "ollama", "mlx"},
    "dora": {"vllm", "sglang", "llama-cpp", "ollama", "mlx"},
    "fractional alpha": {"axolotl"},
    "no init": {"trl", "axolotl", "llama-factory"},
    "gaussian": {"trl", "llama-factory"},
    "pissa": {"trl"},
    "loftq": {"trl", "llama-factory", "ms-swift", "vllm", "sglang", "llama-cpp", "ollama", "mlx"},
    "bias": {"trl", "axolotl", "llama-factory", "vllm", "sglang", "llama-cpp", "ollama", "mlx"},
    "modules to save": {"vllm", "sglang", "llama-cpp", "ollama", "mlx"},
    "lora+": {"trl"},
    "patience": {"trl"},
    "threshold": {"trl", "axolotl", "llama-factory", "ms-swift"},
}
"""Who cannot have what; all else is taken by all."""

ALWAYS = {"training.seed"}


def remarks(trial, target):
    found = judge(trial, target)
    return {outcome: {one.field for one in found if one.outcome == outcome} for outcome in ("refused", "warned")}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_trial_is_refused_by_these_targets(data, name):
    trial = exported(data, **CONFIGURATIONS[name])
    refusing = {target for target in (*TRAINERS, *SERVERS) if remarks(trial, target)["refused"]}
    assert refusing == REFUSED.get(name, set())


WARNED = {
    "one step of warm-up": ({"training": {"warmup_steps": 1}}, "axolotl", {"training.warmup_steps"}),
    "dropout": ({"lora": {"lora_dropout": 0.1}}, "peft", {"lora.lora_dropout"}),
    "packing": ({"data": {"packing": True}}, "trl", {"data.packing"}),
    "quantization": ({"model": {"quantization": "nf4"}}, "trl", {"model.quantization", "model.dtype"}),
    "served without it": ({"model": {"quantization": "nf4"}}, "vllm", {"model.quantization", "model.dtype"}),
    "float16": ({"model": {"dtype": "float16"}}, "ms-swift", {"model.dtype"}),
    "the checkpoint's dtype": ({}, "llama-factory", {"model.dtype"}),
    "batches of evaluation": (
        {"training": {"per_device_eval_batch_size": 3}},
        "trl",
        {"training.per_device_eval_batch_size"},
    ),
    "the last evaluation": ({"training": {"eval_steps": 2}}, "unsloth", {"training.eval_steps"}),
    "the best by epochs": ({"training": {"load_best_model_at_end": True}}, "axolotl", {"training.eval_steps"}),
    "choosing": ({"sweep": {"pruner": "asha", "confirm": {"top": 1, "seeds": 2}}}, "trl", {"sweep"}),
    "forgetting": ({"data": {"forgetting": "builtin/stdlib-code"}}, "axolotl", {"data.forgetting"}),
    "test rows": (
        {"data": {"test": {"path": "builtin/stdlib-topics", "split": "validation", "max_examples": 8}}},
        "unsloth",
        {"data.test"},
    ),
    "another draw": ({"lora": {"use_dora": True}}, "axolotl", {"lora.init_lora_weights"}),
    "rows": ({}, "ms-swift", {"data"}),
    "the head of a server": ({"lora": {"target_modules": "all-linear+head"}}, "vllm", {"lora.target_modules"}),
}


@pytest.mark.parametrize("name", WARNED)
def test_a_target_warns_of_what_differs(data, name):
    changes, target, fields = WARNED[name]
    trial = exported(data, **changes)
    found = remarks(trial, target)
    assert found["refused"] == set()
    always = ALWAYS if target in TRAINERS and target != "peft" else set()
    served = {"model.dtype"} if target in ("vllm", "sglang", "llama-factory", "merged") else set()
    assert fields <= found["warned"]
    assert found["warned"] <= fields | always | served | ({"data"} if target == "ms-swift" else set())


def test_a_refusal_names_key_value_reason_and_who_can(data, tmp_path):
    trial = exported(data, training={"loraplus_lr_ratio": 16.0}, lora={"bias": "all"})
    export = hand_over(trial, "trl", tmp_path)
    others = "peft, axolotl, llama-factory, unsloth and ms-swift can"
    assert [remark.text for remark in export.refusals] == [
        f"training.loraplus_lr_ratio: 16.0: TRL 1.16.0: it has no LoRA+; {others}",
        "lora.bias: all: TRL 1.16.0: it has no key for biases; peft, unsloth and ms-swift can",
    ]
    assert export.folder is None
    assert list(tmp_path.iterdir()) == []


def test_no_training_elsewhere_knows_the_best_by_a_score(data):
    metrics = {"metrics": ["token_accuracy"], "at": "evaluations"}
    kept = {"load_best_model_at_end": True, "metric_for_best_model": "token_accuracy"}
    trial = exported(data, training=kept, evaluation=metrics)
    for target in TRAINERS:
        assert remarks(trial, target)["refused"] == {"training.metric_for_best_model"}
    assert remarks(trial, "vllm")["refused"] == set()


def test_a_trial_without_its_adapter_is_not_served(data, tmp_path):
    trial = replace(exported(data), adapter=None)
    for target in SERVERS:
        [remark] = [one for one in judge(trial, target) if one.outcome == "refused"]
        assert remark.field == "adapter"
        assert hand_over(trial, target, tmp_path).folder is None
    assert not judge(trial, "peft")


def test_high_ranks_are_not_for_vllm(data):
    trial = exported(data, lora={"r": 600, "target_modules": ["k_proj"]})
    assert remarks(trial, "vllm")["refused"] == {"lora.r"}
    converted = exported(data, lora={"r": 300, "target_modules": ["k_proj"], "init_lora_weights": "pissa"})
    assert remarks(converted, "vllm")["refused"] == {"lora.r"}
    assert remarks(exported(data, lora={"r": 300, "target_modules": ["k_proj"]}), "vllm")["refused"] == set()


@pytest.mark.parametrize(
    ("form", "target", "field"),
    [("rows", "peft", "--rows"), ("rows", "unsloth", "--rows"), ("tokens", "ms-swift", "--tokens")],
)
def test_a_target_that_cannot_read_the_data_says_so(data, form, target, field):
    assert remarks(exported(data, data_form=form), target)["refused"] == {field}


def test_the_table_is_in_the_words_of_a_study():
    for row in TABLE:
        assert re.fullmatch(r"(model|data|training|lora)(\.\w+)*|sweep|adapter|--rows|--tokens", row.field)
        for cell in row.cells.values():
            assert cell.reason
            assert not cell.reason.endswith(".")


def test_every_target_has_a_writer():
    assert set(TARGETS) == {*TRAINERS, *SERVERS}
    assert all(callable(target.writer) for target in TARGETS.values())
