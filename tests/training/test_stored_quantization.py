"""Checkpoints that are quantized on disk are recognized, named, predicted rightly, or refused with what to do."""

from __future__ import annotations

import json

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from workshop import CPU, Bench, only, write_base, write_texts

from lora_lab.common.errors import InputError
from lora_lab.study.events import Finished
from lora_lab.study.settings import ModelSettings
from lora_lab.training.base.loading import architecture, load_base, model_config
from lora_lab.training.memory.predictor import MemoryPredictor

FOUR_BITS = {
    "nf4 with double": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "fp4 with double": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
}
OTHERS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4},
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "mxfp4": {"quant_method": "mxfp4"},
    "compressed-tensors": {"quant_method": "compressed-tensors", "config_groups": {}},
}


def stored(tmp_path, **kind):
    """A base saved in four bits, with a compute dtype that is not ours."""
    write_base(tmp_path / "full")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **kind)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "full", quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
    )
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tmp_path / "full").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def settings(folder, **fields) -> ModelSettings:
    return ModelSettings(model_name_or_path=str(folder), **fields)


@pytest.mark.parametrize("kind", FOUR_BITS.values(), ids=FOUR_BITS)
def test_a_base_stored_in_four_bits_is_taken_for_what_it_is(tmp_path, kind):
    folder = stored(tmp_path, **kind)
    name, double = kind["bnb_4bit_quant_type"], kind.get("bnb_4bit_use_double_quant", False)
    right = settings(folder, quantization=name, double_quant=double, dtype="float32")
    base = load_base(right, CPU)
    quantized = [module for module in base.model.modules() if isinstance(module, Linear4bit)]
    assert quantized
    assert {module.compute_dtype for module in quantized} == {torch.float32}
    assert base.linears == architecture(settings(tmp_path / "full"))
    wrong = [("none", False), ("nf4", not double), ("fp4", not double), ("int8", False)]
    for quantization, double_quant in wrong:
        told = settings(folder, quantization=quantization, double_quant=double_quant)
        for read in (architecture, model_config, lambda one: load_base(one, CPU)):
            with pytest.raises(
                InputError, match=rf"set model.quantization: {name} and model.double_quant: {str(double).lower()}$"
            ):
                read(told)


def test_it_needs_what_a_base_needs_that_is_quantized_when_it_is_loaded(tmp_path):
    folder = stored(tmp_path, bnb_4bit_quant_type="nf4")
    bench = Bench(folder, tmp_path, tmp_path, dtype="float32", quantization="nf4")
    trial = bench.trial()
    alike = [
        MemoryPredictor(model_config(settings(one, quantization="nf4")), trial.model, "cuda").predict(trial)
        for one in (folder, tmp_path / "full")
    ]
    assert alike[0] == alike[1]
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["llm_int8_skip_modules"] = ["lm_head", "model.layers.0.mlp"]
    (folder / "config.json").write_text(json.dumps(config))
    partly = MemoryPredictor(model_config(settings(folder, quantization="nf4")), trial.model, "cuda").predict(trial)
    assert partly.base > alike[0].base


def test_it_trains(tmp_path):
    folder = stored(tmp_path, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    for name, rows in (("train", 12), ("validation", 4)):
        write_texts(tmp_path / f"{name}.jsonl", rows)
    bench = Bench(folder, tmp_path, tmp_path, dtype="float32", quantization="nf4", double_quant=True)
    assert len(only(bench.run(bench.trial(max_steps=2)), Finished)) == 1


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("read", [architecture, model_config])
def test_other_methods_are_refused_by_name(tmp_path, method, read):
    write_base(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": OTHERS[method]}))
    with pytest.raises(InputError, match=f"are stored as {method}, on which .*; give the base in full precision"):
        read(settings(tmp_path, quantization="nf4"))
