"""PEFT stays the authority: same initial weights, same modules, files that it loads."""

from __future__ import annotations

from itertools import cycle, product

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from lora_lab.study.settings import LoraSettings, ModelSettings
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.adapters import initial_weights, lora_config, save_adapter
from lora_lab.training.base.architecture import linear_map


def make_llama(dtype=torch.float32):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=50,
            tie_word_embeddings=False,
        )
    ).to(dtype)


def make_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_head=4, n_layer=3, vocab_size=50, n_positions=32))


def peft_weights(model):
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


SETTINGS = [
    {"r": 4},
    {"r": 300, "target_modules": "attention"},
    {"r": 4, "layers": "last_half"},
    {"r": 4, "layers": (0, 3), "target_modules": "mlp"},
    {"r": 4, "layers": "every_2nd", "target_modules": "all-linear+head"},
    {"r": 4, "target_modules": "all-linear+head"},
    {"r": 4, "init_lora_weights": "gaussian"},
    {"r": 4, "init_lora_weights": False},
    {"r": 4, "init_lora_weights": "orthogonal"},
    {"r": 4, "target_modules": r".*layers\.[12]\..*(q|up)_proj"},
]


DTYPES = (torch.float32, torch.float64, torch.bfloat16)


# Each dtype with a third of the settings: values are drawn in float32 whatever the base is, and rounded at the end.
@pytest.mark.parametrize(
    ("settings", "dtype"),
    [*zip(SETTINGS, cycle(DTYPES)), (SETTINGS[0], torch.float64), (SETTINGS[0], torch.bfloat16)],
    ids=str,
)
def test_initial_weights_and_modules_are_those_of_get_peft_model(settings, dtype):
    lora = LoraSettings(**settings)
    model = make_llama(dtype)
    linears = linear_map(model)
    ours = initial_weights(lora, linears, seed=123, base_dtype=dtype)
    torch.manual_seed(123)
    theirs = peft_weights(get_peft_model(model, lora_config(lora, linears)))
    assert {f"base_model.model.{n}.lora_{s}.default.weight" for n in ours for s in "AB"} == set(theirs)
    for name, pair in ours.items():
        for side, tensor in (("A", pair.a), ("B", pair.b)):
            expected = theirs[f"base_model.model.{name}.lora_{side}.default.weight"]
            assert tensor.dtype == expected.dtype
            assert torch.equal(tensor, expected)


def test_initial_weights_leave_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    initial_weights(LoraSettings(r=2), linear_map(make_llama()), 1, torch.float32)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(3), expected)


TARGETS = ("attention", "mlp", "all-linear", "all-linear+head")
LAYERS = ("all", "first_half", "last_half", "every_2nd", (1,))


# All targets with all layers, on one base or the other in turn; each base meets every target and every layers.
@pytest.mark.parametrize(
    ("make", "targets", "layers"),
    [(make, *pair) for make, pair in zip(cycle((make_llama, make_gpt2)), product(TARGETS, LAYERS))],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_peft_adapts_exactly_the_resolved_modules(make, targets, layers):
    model = make()
    lora = LoraSettings(r=2, target_modules=targets, layers=layers)
    linears = linear_map(model)
    adapted = get_peft_model(model, lora_config(lora, linears)).targeted_module_names
    assert set(adapted) == set(resolve_targets(linears, lora))


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_saved_adapter_loads_with_peft_and_acts(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "base")
    linears = linear_map(model)
    lora = LoraSettings(r=4, init_lora_weights=False, target_modules="all-linear+head")
    weights = initial_weights(lora, linears, 3, torch.float32)
    config = lora_config(lora, linears, fan_in_fan_out=make is make_gpt2)
    folder = tmp_path / "adapter"
    save_adapter(folder, config, ModelSettings(model_name_or_path="x"), weights, str(tmp_path / "base"))
    save_adapter(folder, config, ModelSettings(model_name_or_path="x"), weights, str(tmp_path / "base"))
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]

    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    ids = torch.arange(10).unsqueeze(0)
    before = base(input_ids=ids).logits
    loaded = PeftModel.from_pretrained(base, folder).eval()
    head = dict(loaded.named_modules())["base_model.model.lm_head"]
    assert torch.equal(head.lora_A["default"].weight, weights["lm_head"].a)
    assert (loaded(input_ids=ids).logits - before).abs().max() > 1e-3
