from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lab.common.errors import InputError
from lora_lab.study.peft_targets import peft_targets
from lora_lab.study.settings import LoraSettings
from lora_lab.study.targets import (
    ExpertShape,
    LinearMap,
    LinearShape,
    adapted,
    full_rank_excess,
    placement,
    resolve_experts,
    resolve_targets,
    trainable_parameters,
)


def llama(layers: int, hidden: int, kv: int, mlp: int, vocabulary: int) -> LinearMap:
    shapes = {}
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name, width in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            shapes[f"{at}.self_attn.{name}_proj"] = LinearShape(hidden, width)
        shapes[f"{at}.mlp.gate_proj"] = LinearShape(hidden, mlp)
        shapes[f"{at}.mlp.up_proj"] = LinearShape(hidden, mlp)
        shapes[f"{at}.mlp.down_proj"] = LinearShape(mlp, hidden)
    shapes["lm_head"] = LinearShape(hidden, vocabulary)
    return LinearMap(shapes=shapes, head="lm_head", num_layers=layers, total_parameters=0)


def qwen3(layers: int, hidden: int, heads: int, mlp: int, vocabulary: int) -> LinearMap:
    """Qwen3: 128 per head and 8 key-value heads; queries wider than the hidden state."""
    plain = llama(layers, hidden, 8 * 128, mlp, vocabulary)
    shapes = dict(plain.shapes)
    for layer in range(layers):
        shapes[f"model.layers.{layer}.self_attn.q_proj"] = LinearShape(hidden, heads * 128)
        shapes[f"model.layers.{layer}.self_attn.o_proj"] = LinearShape(heads * 128, hidden)
    return LinearMap(shapes=shapes, head="lm_head", num_layers=layers, total_parameters=0)


LLAMA_2_7B = llama(32, 4096, 4096, 11008, 32000)
GPT_3 = llama(96, 12288, 12288, 49152, 50257)

PUBLISHED = [
    (LLAMA_2_7B, 8, ("q_proj", "v_proj"), 4_194_304),
    (LLAMA_2_7B, 8, "all-linear", 19_988_480),
    (LLAMA_2_7B, 8, "all-linear+head", 20_277_248),
    (LLAMA_2_7B, 16, "all-linear+head", 40_554_496),
    (LLAMA_2_7B, 256, "all-linear+head", 648_871_936),
    (LLAMA_2_7B, 256, "all-linear", 639_631_360),
    (GPT_3, 4, ("q_proj", "v_proj"), 18_874_368),
]

PER_UNIT_OF_RANK = [
    ("Llama-3.1-8B", llama(32, 4096, 1024, 14336, 128256), 851_968, 1_769_472, 132_352),
    ("Llama-3.2-1B", llama(16, 2048, 512, 8192, 128256), 212_992, 491_520, 130_304),
    ("Llama-3.2-3B", llama(28, 3072, 1024, 8192, 128256), 573_440, 946_176, 131_328),
    ("Qwen3-8B", qwen3(36, 4096, 32, 12288, 151936), 958_464, 1_769_472, 156_032),
    ("Qwen3-4B", qwen3(36, 2560, 32, 9728, 151936), 737_280, 1_327_104, 154_496),
]


@pytest.mark.parametrize(("linears", "r", "targets", "count"), PUBLISHED)
def test_published_parameter_counts(linears: LinearMap, r: int, targets: object, count: int) -> None:
    assert trainable_parameters(linears, LoraSettings.model_validate({"r": r, "target_modules": targets})) == count


@pytest.mark.parametrize(("name", "linears", "attention", "mlp", "head"), PER_UNIT_OF_RANK)
def test_parameters_per_unit_of_rank(name: str, linears: LinearMap, attention: int, mlp: int, head: int) -> None:
    def count(targets: str) -> int:
        return trainable_parameters(linears, LoraSettings(r=1, target_modules=targets))

    assert (count("attention"), count("mlp"), count("all-linear+head") - count("all-linear")) == (
        attention,
        mlp,
        head,
    )


SMALL = llama(5, 64, 32, 128, 100)


@given(
    st.integers(1, 64),
    st.sampled_from(["attention", "mlp", "all-linear", r".*\.[qv]_proj", ("q_proj", "down_proj")]),
    st.sampled_from(["all", "first_half", "last_half", "every_2nd", (0,), (1, 4)]),
)
def test_parameters_are_linear_in_r_and_additive_over_layers(r: int, targets: object, layers: object) -> None:
    def count(**settings: object) -> int:
        return trainable_parameters(SMALL, LoraSettings.model_validate({"target_modules": targets, **settings}))

    assert count(r=r, layers=layers) == r * count(r=1, layers=layers)
    assert count(r=r, layers="first_half") + count(r=r, layers="last_half") == count(r=r)


SIZED = LinearMap(
    shapes={
        "model.layers.0.self_attn.q_proj": LinearShape(8, 6),
        "model.layers.0.mlp.up_proj": LinearShape(8, 10),
        "lm_head": LinearShape(8, 20),
    },
    head="lm_head",
    num_layers=1,
    total_parameters=0,
    sizes={
        "model.embed_tokens.weight": 160,
        "model.layers.0.self_attn.q_proj.weight": 48,
        "model.layers.0.self_attn.q_proj.bias": 6,
        "model.layers.0.mlp.up_proj.weight": 80,
        "model.layers.0.mlp.up_proj.bias": 10,
        "model.layers.0.input_layernorm.weight": 8,
        "model.layers.0.input_layernorm.bias": 8,
        "model.norm.weight": 8,
        "lm_head.weight": 160,
    },
)


@pytest.mark.parametrize(
    ("settings", "more"),
    [
        ({"use_dora": True}, 6),
        ({"bias": "all"}, 6 + 10 + 8),
        ({"bias": "lora_only"}, 6),
        ({"modules_to_save": ["lm_head"]}, 160),
        ({"modules_to_save": ["embed_tokens", "model.norm"]}, 168),
        ({"modules_to_save": ["norm"]}, 8 + 8 + 8),  # PEFT's rule: the layer norm's name ends so too
        ({"modules_to_save": ["mlp"], "bias": "all"}, 80 + 6 + 10 + 8),
        ({"use_dora": True, "bias": "lora_only", "modules_to_save": ["lm_head"]}, 6 + 6 + 160),
    ],
    ids=str,
)
def test_magnitudes_biases_and_whole_modules_are_counted_too(settings: dict[str, object], more: int) -> None:
    def count(**others: object) -> int:
        lora = LoraSettings.model_validate({"r": 3, "target_modules": ["q_proj"], **others})
        return trainable_parameters(SIZED, lora)

    assert count() == 3 * (8 + 6)
    assert count(**settings) == count() + more


@pytest.mark.parametrize(
    ("layers", "indices"),
    [
        ("all", {0, 1, 2, 3, 4}),
        ("first_half", {0, 1, 2}),
        ("last_half", {3, 4}),
        ("every_2nd", {0, 2, 4}),
        ((3,), {3}),
    ],
)
def test_layers(layers: object, indices: set[int]) -> None:
    lora = LoraSettings.model_validate({"layers": layers})
    assert {SMALL.layer_of(name) for name in resolve_targets(SMALL, lora)} == indices


def test_the_halves_of_a_single_layer_are_that_layer() -> None:
    one = llama(1, 8, 8, 8, 8)
    assert resolve_targets(one, LoraSettings(layers="last_half")) == resolve_targets(
        one, LoraSettings(layers="first_half")
    )


def test_presets_know_other_architectures() -> None:
    gpt2 = LinearMap(
        shapes={
            f"transformer.h.0.{name}": LinearShape(8, 8)
            for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        },
        head=None,
        num_layers=1,
        total_parameters=0,
    )
    assert [name.rsplit(".", 1)[1] for name in resolve_targets(gpt2, LoraSettings(target_modules="attention"))] == [
        "c_attn",
        "c_proj",
    ]
    assert len(resolve_targets(gpt2, LoraSettings(target_modules="mlp"))) == 2
    with pytest.raises(InputError, match="needs an output head"):
        resolve_targets(gpt2, LoraSettings(target_modules="all-linear+head"))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"target_modules": "atention"}, "matches no linear module; the model has down_proj"),
        ({"target_modules": ("query",)}, "matches no linear module"),
        ({"target_modules": "("}, "no preset and no valid regex"),
        ({"layers": (0, 5)}, "layers 0 to 4, but got 5"),
        ({"target_modules": ("lm_head",), "layers": (0,)}, "matches no linear module"),
    ],
)
def test_targets_that_match_nothing_are_refused(settings: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=reason.replace("(", r"\(")):
        resolve_targets(SMALL, LoraSettings.model_validate(settings))


def test_more_rank_than_the_matrix_is_found() -> None:
    excess = full_rank_excess(SMALL, LoraSettings(r=48, target_modules="attention", layers=(0,)))
    assert excess == {"model.layers.0.self_attn.k_proj": 32, "model.layers.0.self_attn.v_proj": 32}
    assert full_rank_excess(SMALL, LoraSettings(r=32)) == {}


def mixture(dense: tuple[int, ...] = ()) -> LinearMap:
    """Four layers; each but the dense ones has four experts."""
    plain = llama(4, 64, 32, 128, 100)
    experts = {
        f"model.layers.{layer}.mlp.experts.{name}": shape
        for layer in range(4)
        if layer not in dense
        for name, shape in (("gate_up_proj", ExpertShape(4, 96, 64)), ("down_proj", ExpertShape(4, 64, 48)))
    }
    return LinearMap(
        shapes={name: shape for name, shape in plain.shapes.items() if ".mlp." not in name},
        head="lm_head",
        num_layers=4,
        total_parameters=2 * sum(shape.elements for shape in experts.values()),
        sizes={name: shape.elements for name, shape in experts.items()},
        experts=experts,
    )


def with_experts(**settings: object) -> LoraSettings:
    given: dict[str, object] = {"target_modules": "attention", "target_parameters": "experts"}
    return LoraSettings.model_validate(given | settings)


def test_every_expert_has_an_adapter_of_rank_r() -> None:
    without = trainable_parameters(mixture(), with_experts(r=3, target_parameters="none"))
    of_experts = 4 * 4 * 3 * ((96 + 64) + (64 + 48))
    assert trainable_parameters(mixture(), with_experts(r=3)) == without + of_experts
    assert full_rank_excess(mixture(), with_experts(r=49, target_modules=("q_proj",), layers=(0,))) == {
        "model.layers.0.mlp.experts.down_proj": 48
    }


@pytest.mark.parametrize(
    ("settings", "layers", "parameters"),
    [
        ({}, {0, 1, 2, 3}, ("experts.down_proj", "experts.gate_up_proj")),
        ({"target_parameters": ["down_proj"]}, {0, 1, 2, 3}, ("experts.down_proj",)),
        ({"target_parameters": ["mlp.experts.down_proj"]}, {0, 1, 2, 3}, ("experts.down_proj",)),
        (
            {"layers": [2]},
            {2},
            ("model.layers.2.mlp.experts.gate_up_proj", "model.layers.2.mlp.experts.down_proj"),
        ),
        (
            {"layers": "last_half", "target_parameters": ["model.layers.3.mlp.experts.down_proj"]},
            {3},
            ("model.layers.3.mlp.experts.down_proj",),
        ),
    ],
    ids=str,
)
def test_layers_hold_for_experts_too(
    settings: dict[str, object], layers: set[int], parameters: tuple[str, ...]
) -> None:
    lora = with_experts(**settings)
    assert {mixture().layer_of(name) for name in resolve_experts(mixture(), lora)} == layers
    assert peft_targets(mixture(), lora).parameters == parameters
    assert adapted(mixture(), lora) == (*resolve_targets(mixture(), lora), *resolve_experts(mixture(), lora))


@pytest.mark.parametrize("targets", ["none", "mlp"])
def test_experts_alone(targets: str) -> None:
    """Under `mlp` because this base has no other feed-forward modules."""
    lora = with_experts(target_modules=targets, layers=[1])
    assert adapted(mixture(), lora) == resolve_experts(mixture(), lora)
    assert peft_targets(mixture(), lora)[:2] == ((), None)
    with pytest.raises(InputError, match="matches no linear module"):
        resolve_targets(mixture(), with_experts(target_modules="mpl"))


def test_what_is_trained_and_what_stays_frozen_is_told() -> None:
    chosen, left_out = placement(mixture(), with_experts(target_parameters=["down_proj"], layers=[0, 1]))
    assert chosen[-1] == "experts: down_proj (2 of 4 layers), 8% of the base"
    assert "experts: down_proj, gate_up_proj, 42% of the base, which stay frozen" in left_out
    assert placement(mixture(), with_experts()).chosen[-1] == "experts: down_proj, gate_up_proj, 50% of the base"


@pytest.mark.parametrize(
    ("linears", "settings", "reason"),
    [
        (
            SMALL,
            {},
            "target_parameters: experts needs fused weights of experts, but this base has none; set it to none",
        ),
        (
            mixture(),
            {"target_parameters": ["w1"]},
            "'w1' matches no weights of experts; the model has experts.down_proj",
        ),
        (mixture(), {"target_parameters": ["down_proj", "q_proj"]}, "'q_proj' matches no weights of experts"),
        (mixture(dense=(0, 1)), {"layers": [0]}, "experts with layers (0,) matches no weights of experts; they are in"),
    ],
)
def test_experts_that_are_not_there_are_refused(linears: LinearMap, settings: dict[str, object], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        resolve_experts(linears, with_experts(**settings))
