"""What an architecture calls attention, MLP, router, expert, ... is found by its structure, and presets follow it."""

from __future__ import annotations

from functools import cache

import pytest
from families import EQUAL_HEADS, FAMILIES, GPT, GROUPED, NO_DROPOUT, OPT
from peft import get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPTNeoXConfig, JetMoeConfig, LlamaConfig, OPTConfig

from lora_lab.common.errors import InputError
from lora_lab.planning.row_checks import dropout_notes
from lora_lab.study.peft_targets import peft_targets
from lora_lab.study.settings import LoraSettings
from lora_lab.study.targets import placement, resolve_targets, trainable_parameters
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.base.architecture import linear_map_of_config

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
PRESETS = {  # family: modules of `attention`, of `mlp`
    "Llama 3": (ATTENTION, MLP),
    "Llama 4 (text)": (ATTENTION, MLP),
    "Qwen2-MoE": (ATTENTION, MLP),
    "Qwen3-Next": (ATTENTION | {"in_proj_qkvz", "in_proj_ba", "out_proj"}, MLP),
    "GPT-2": ({"c_attn", "c_proj"}, {"c_fc", "c_proj"}),
    "GPT-NeoX": ({"query_key_value", "dense"}, {"dense_h_to_4h", "dense_4h_to_h"}),
    "OPT": ({"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
    "Phi-2": ({"q_proj", "k_proj", "v_proj", "dense"}, {"fc1", "fc2"}),
    "Phi-3 and 4": ({"qkv_proj", "o_proj"}, {"gate_up_proj", "down_proj"}),
    "Granite 4 (hybrid, MoE)": (ATTENTION | {"in_proj", "out_proj"}, {"input_linear", "output_linear"}),
    "Falcon-H1": (ATTENTION | {"in_proj"}, MLP),
    "Jamba": (ATTENTION | {"in_proj", "x_proj", "out_proj"}, MLP),
    "Bamba": (ATTENTION | {"in_proj", "out_proj"}, MLP),
    "RecurrentGemma": (ATTENTION | {"linear_x", "linear_y", "linear_out"}, MLP),
    "LFM2": ({"q_proj", "k_proj", "v_proj", "out_proj", "in_proj"}, {"w1", "w2", "w3"}),
    "Gemma 3": (ATTENTION, MLP),
}


@cache
def linears(family):
    return linear_map_of_config(FAMILIES[family])


def endings(family, targets):
    return {name.rsplit(".", 1)[-1] for name in resolve_targets(linears(family), LoraSettings(target_modules=targets))}


@pytest.mark.parametrize("family", PRESETS)
def test_presets_take_token_mixers_and_feed_forward_modules(family):
    attention, mlp = PRESETS[family]
    assert endings(family, "attention") == attention
    assert endings(family, "mlp") == mlp
    both = {*resolve_targets(linears(family), LoraSettings(target_modules="attention"))}
    assert both.isdisjoint(resolve_targets(linears(family), LoraSettings(target_modules="mlp")))
    assert endings(family, "all-linear") >= attention | mlp


@pytest.mark.parametrize("family", ["Qwen3-Next", "Jamba", "Bamba", "RecurrentGemma", "LFM2", "Falcon-H1"])
def test_every_layer_of_a_hybrid_has_adapters_under_attention(family):
    there = linears(family)
    chosen = resolve_targets(there, LoraSettings(target_modules="attention"))
    assert {there.layer_of(name) for name in chosen} == set(range(there.num_layers))


@pytest.mark.parametrize("family", ["Qwen2-MoE", "Qwen3-Next-MoE"])
def test_routers_are_of_all_linear_alone(family):
    router = "shared_expert_gate"
    assert {role for name, role in linears(family).roles.items() if name.endswith(f".{router}")} == {"router"}
    assert router in endings(family, "all-linear")
    assert router not in endings(family, "mlp") | endings(family, "attention")


def test_the_vision_tower_is_left_alone_however_its_modules_are_called():
    there = linears("Gemma 3")
    choices = ("attention", "mlp", "all-linear", "all-linear+head", ("q_proj",), ".*q_proj")
    for targets in choices:
        assert not any("vision" in name for name in resolve_targets(there, LoraSettings(target_modules=targets)))
    modules, layers, _ = peft_targets(there, LoraSettings(target_modules="attention", layers=(1,)))
    assert all(name.startswith("model.language_model.layers.1.") for name in modules), "q_proj would match the tower"
    assert layers is None
    with pytest.raises(InputError, match="of the vision or audio part alone"):
        resolve_targets(there, LoraSettings(target_modules=("fc1",)))


@pytest.mark.parametrize("family", ["Mamba", "Mamba 2", "Falcon-H1"])
def test_what_peft_does_not_adapt_is_left_out_of_presets_and_refused_by_name(family):
    there = linears(family)
    assert "out_proj" not in endings(family, "all-linear")
    with pytest.raises(InputError, match=r"no adapter can sit on \S+out_proj \(Module 'out_proj' is incompatible"):
        resolve_targets(there, LoraSettings(target_modules=("in_proj", "out_proj")))
    assert any("incompatible" in text for text in placement(there, LoraSettings()).left_out)


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [
        ("Llama 4 (text)", "router", "more than one tensor"),
        ("Mamba", "dt_proj", "without calling it"),
        ("Jamba", "dt_proj", "without calling it"),
    ],
)
def test_modules_behind_which_no_adapter_could_act_are_left_out(family, name, reason):
    assert name not in endings(family, "all-linear")
    with pytest.raises(InputError, match=rf"no adapter can sit on \S+{name} \(.*{reason}\)"):
        endings(family, (name,))


def test_what_was_chosen_and_left_out_is_told_by_role():
    chosen, left_out = placement(linears("Qwen2-MoE"), LoraSettings(target_modules="mlp"))
    assert chosen == ("shared expert: down_proj, gate_proj, up_proj",)
    assert left_out[:3] == ("attention: k_proj, o_proj, q_proj, v_proj", "head: lm_head", "router: shared_expert_gate")
    assert left_out[3].startswith("experts: down_proj, gate_up_proj, ")
    assert left_out[3].endswith("% of the base, which stay frozen")
    hybrid = placement(linears("Bamba"), LoraSettings(target_modules="attention")).chosen
    assert hybrid == (
        "attention: k_proj, o_proj, q_proj, v_proj (1 of 2 layers)",
        "state space: in_proj, out_proj (1 of 2 layers)",
    )


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3-MoE", "gpt-oss", "OLMoE"])
def test_experts_without_linear_modules_are_named_where_mlp_matches_nothing(family):
    with pytest.raises(InputError, match=r"matches no linear module.*\(its experts are no linear modules: see lora"):
        resolve_targets(linears(family), LoraSettings(target_modules="mlp"))


def test_experts_are_told_by_the_class_of_their_modules_too():
    """JetMoE's stand in modules of their own, also in attention, and are called `weight`."""
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 64}
    config = JetMoeConfig(**small, num_key_value_heads=2, kv_channels=8, num_local_experts=4)
    there = linear_map_of_config(config)
    lora = LoraSettings(r=2, target_modules="attention", target_parameters="experts")
    assert "experts: input_linear, output_linear" in placement(there, lora).chosen[-1]
    model = get_peft_model(AutoModelForCausalLM.from_config(config), lora_config(lora, there))
    assert model.get_nb_trainable_parameters()[0] == trainable_parameters(there, lora)


OWN_DROPOUT = {
    "gpt-2": (GPT2Config(**GPT), {"drop": 0.1, "dropout": 0.1, "resid_dropout": 0.1, "attn_dropout": 0.1}),
    "attention alone": (GPT2Config(**GPT, **NO_DROPOUT | {"attn_pdrop": 0.2}), {"attn_dropout": 0.2}),
    "opt": (OPTConfig(**OPT, dropout=0.1, attention_dropout=0.05), {"dropout": 0.1}),
    "llama": (LlamaConfig(**GROUPED, attention_dropout=0.3), {"attention_dropout": 0.3}),
    "neox": (GPTNeoXConfig(**EQUAL_HEADS, attention_dropout=0.1), {"attention_dropout": 0.1}),
    "none": (GPT2Config(**GPT, **NO_DROPOUT), {}),
}


@pytest.mark.parametrize(("config", "dropout"), OWN_DROPOUT.values(), ids=OWN_DROPOUT)
def test_dropout_of_the_base_itself_is_found_and_told(config, dropout):
    there = linear_map_of_config(config)
    assert there.dropout == dropout
    notes = dropout_notes(there)
    assert len(notes) == bool(dropout)
    assert all(f"{name} {share:g}" in notes[0] for name, share in dropout.items())
