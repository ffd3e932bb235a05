"""Published trainable-parameter counts come out exactly, of configs alone."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

from lora_lab.common.errors import InputError
from lora_lab.study.settings import LoraSettings
from lora_lab.study.targets import trainable_parameters
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.base.architecture import linear_map_of_config

QV = ("q_proj", "v_proj")


def llama(hidden, intermediate, layers, heads, kv_heads, vocabulary, head_dim=None, tied=False):
    return LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        head_dim=head_dim,
        tie_word_embeddings=tied,
    )


def qwen3(hidden, intermediate, layers, heads, kv_heads, tied):
    return Qwen3Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        vocab_size=151936,
        tie_word_embeddings=tied,
    )


CONFIGS = {
    "Llama-2-7B": llama(4096, 11008, 32, 32, 32, 32000),
    "Llama-3.1-8B": llama(4096, 14336, 32, 32, 8, 128256),
    "Llama-3.2-1B": llama(2048, 8192, 16, 32, 8, 128256, head_dim=64, tied=True),
    "Llama-3.2-3B": llama(3072, 8192, 28, 24, 8, 128256, head_dim=128, tied=True),
    "Qwen3-8B": qwen3(4096, 12288, 36, 32, 8, tied=False),
    "Qwen3-4B": qwen3(2560, 9728, 36, 32, 8, tied=True),
}


PUBLISHED = CONFIGS | {
    "Mistral-7B-v0.3": MistralConfig(vocab_size=32768, num_key_value_heads=8),
    "Gemma-2-9B": Gemma2Config(
        hidden_size=3584, intermediate_size=14336, num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8
    ),
    "Phi-3-mini": Phi3Config(),
    "Qwen2.5-7B": Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
    ),
    "GPT-NeoX-20B": GPTNeoXConfig(),
}
"""Of the sizes that their makers published; what is not said here is the config's default, which is theirs."""


@pytest.fixture(scope="module")
def maps():
    return {name: linear_map_of_config(config) for name, config in CONFIGS.items()}


@pytest.mark.parametrize(
    ("r", "targets", "published"),
    [
        (8, QV, 4_194_304),
        (8, "all-linear", 19_988_480),
        (8, "all-linear+head", 20_277_248),
        (16, "all-linear+head", 40_554_496),
        (256, "all-linear+head", 648_871_936),
        (256, "all-linear", 639_631_360),
    ],
)
def test_llama_2_7b(maps, r, targets, published):
    assert trainable_parameters(maps["Llama-2-7B"], LoraSettings(r=r, target_modules=targets)) == published


@pytest.mark.parametrize(
    ("model", "attention", "mlp", "head"),
    [
        ("Llama-3.1-8B", 851_968, 1_769_472, 132_352),
        ("Llama-3.2-1B", 212_992, 491_520, 130_304),
        ("Llama-3.2-3B", 573_440, 946_176, 131_328),
        ("Qwen3-8B", 958_464, 1_769_472, 156_032),
        ("Qwen3-4B", 737_280, 1_327_104, 154_496),
    ],
)
def test_parameters_per_unit_of_rank(maps, model, attention, mlp, head):
    count = {
        targets: trainable_parameters(maps[model], LoraSettings(r=1, target_modules=targets))
        for targets in ("attention", "mlp", "all-linear", "all-linear+head")
    }
    assert count["attention"] == attention
    assert count["mlp"] == mlp
    assert count["all-linear"] == attention + mlp
    assert count["all-linear+head"] - count["all-linear"] == head


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["attention", "mlp", "all-linear"])
@pytest.mark.parametrize("model", PUBLISHED)
def test_counts_of_published_sizes_are_those_of_peft(model, targets):
    linears, lora = linear_map_of_config(PUBLISHED[model]), LoraSettings(r=16, target_modules=targets)
    with torch.device("meta"):
        adapted = get_peft_model(AutoModelForCausalLM.from_config(PUBLISHED[model]), lora_config(lora, linears))
    assert trainable_parameters(linears, lora) == adapted.get_nb_trainable_parameters()[0]


def test_total_parameters_count_tied_weights_once(maps):
    assert maps["Llama-3.1-8B"].total_parameters == 8_030_261_248
    assert maps["Llama-3.2-1B"].total_parameters == 1_235_814_400


def test_presets_follow_the_architecture_not_llamas_names():
    gpt2 = linear_map_of_config(GPT2Config(n_layer=2))
    r1 = {t: trainable_parameters(gpt2, LoraSettings(r=1, target_modules=t)) for t in ("attention", "mlp")}
    assert r1["attention"] == 2 * ((768 + 2304) + (768 + 768))
    assert r1["mlp"] == 2 * 2 * (768 + 3072)


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a model config"):
        linear_map_of_config(tmp_path)
