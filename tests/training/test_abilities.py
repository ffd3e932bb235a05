"""A base is asked what it can do: whether it is causal, learns, and how long a row it can read."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BertConfig,
    BioGptConfig,
    CodeGenConfig,
    CTRLConfig,
    ElectraConfig,
    GemmaConfig,
    GPT2Config,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    JambaConfig,
    MambaConfig,
    MixtralConfig,
    MptConfig,
    OpenAIGPTConfig,
    OPTConfig,
    Qwen3NextConfig,
    RobertaConfig,
    XGLMConfig,
    XLMConfig,
    XLNetConfig,
)
from workshop import CPU, VOCABULARY, llama_config, make_base

from lora_lab.common.errors import InputError
from lora_lab.training.base.abilities import require_causal
from lora_lab.training.base.architecture import linear_map_of_config

POSITIONS = 24
IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
USUAL = IDS | {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": POSITIONS,
}
GPT = {"n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": POSITIONS, "vocab_size": VOCABULARY}
CONVOLUTION = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}

SEES_LATER_TOKENS = {
    "bert": BertConfig(**USUAL),
    "roberta": RobertaConfig(**USUAL | {"pad_token_id": 1}),
    "electra": ElectraConfig(embedding_size=16, **USUAL),
    "xlm": XLMConfig(emb_dim=16, n_layers=2, n_heads=2, vocab_size=VOCABULARY),
    "xlnet": XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, vocab_size=VOCABULARY),
}
CAUSAL = {
    "llama": llama_config(),
    "bert as a decoder": BertConfig(is_decoder=True, **USUAL),
    "gpt2": GPT2Config(**GPT),
    "gemma": GemmaConfig(head_dim=8, num_key_value_heads=2, **USUAL),
    "mixtral": MixtralConfig(num_key_value_heads=2, num_local_experts=4, **USUAL),
    "mamba": MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **IDS),
    "jamba": JambaConfig(
        num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_d_state=4, **USUAL
    ),
    "qwen3-next": Qwen3NextConfig(
        **USUAL | {"num_hidden_layers": 4, "max_position_embeddings": 64},
        **CONVOLUTION,
        linear_num_value_heads=2,
        head_dim=8,
        num_key_value_heads=2,
        num_experts=0,
    ),
}


def model_of(config):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(requires_grad=False)


@pytest.mark.parametrize("config", SEES_LATER_TOKENS.values(), ids=SEES_LATER_TOKENS)
def test_a_base_that_sees_later_tokens_is_refused(config):
    with pytest.raises(InputError, match=r"not causal \(\w+: tokens see later ones\).*; take a decoder"):
        require_causal(model_of(config), CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CAUSAL.values(), ids=CAUSAL)
def test_a_decoder_is_taken_and_left_as_it_was(config, dtype):
    model = model_of(config).to(dtype)
    hooks = len(model.get_input_embeddings()._forward_hooks)
    require_causal(model, CPU)
    assert len(model.get_input_embeddings()._forward_hooks) == hooks
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_base_without_gradients_is_refused():
    model = make_base(llama_config()).model

    class Cut(nn.Module):
        def forward(self, x):
            return x.detach()

    model.model.norm = Cut()
    with pytest.raises(InputError, match="no gradient goes through this base"):
        require_causal(model, CPU)


# Positions

TABLES = {
    "gpt2": GPT2Config(**GPT),
    "gpt-neo": GPTNeoConfig(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention_types=[[["global", "local"], 1]],
        max_position_embeddings=POSITIONS,
        window_size=8,
        **IDS,
    ),
    "gpt-j": GPTJConfig(rotary_dim=4, **GPT),
    "bigcode": GPTBigCodeConfig(**GPT),
    "codegen": CodeGenConfig(rotary_dim=4, **GPT | {"n_embd": 32, "n_head": 4}),
    "openai-gpt": OpenAIGPTConfig(**GPT),
    "ctrl": CTRLConfig(dff=32, **GPT),
    "opt": OPTConfig(
        hidden_size=16,
        ffn_dim=32,
        word_embed_proj_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        **IDS,
    ),
    "bart": BartConfig(
        d_model=16,
        decoder_layers=2,
        decoder_ffn_dim=32,
        decoder_attention_heads=2,
        max_position_embeddings=POSITIONS,
        **IDS,
    ),
    "biogpt": BioGptConfig(**USUAL),
    "bert": BertConfig(is_decoder=True, **USUAL),
    "roberta": RobertaConfig(is_decoder=True, **USUAL | {"pad_token_id": 1}),
    "mpt": MptConfig(d_model=16, n_heads=2, n_layers=2, max_seq_len=POSITIONS, vocab_size=VOCABULARY),
}
WITHOUT_TABLES = {
    "llama": llama_config(max_position_embeddings=POSITIONS),
    "neox": GPTNeoXConfig(**USUAL),
    "xglm": XGLMConfig(
        d_model=16, ffn_dim=32, num_layers=2, attention_heads=2, max_position_embeddings=POSITIONS, **IDS
    ),
    "mamba": MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **IDS),
}


def reads(model, length: int) -> bool:
    try:
        model(input_ids=torch.full((1, length), 5), use_cache=False)
    except (IndexError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("config", TABLES.values(), ids=TABLES)
def test_a_table_of_positions_is_as_long_as_the_longest_row_that_can_be_read(config):
    limits = linear_map_of_config(config).limits
    model = model_of(config)
    assert limits.positions is not None
    assert reads(model, limits.positions)
    assert not reads(model, limits.positions + 1)
    assert limits.vocabulary == VOCABULARY


@pytest.mark.parametrize("config", WITHOUT_TABLES.values(), ids=WITHOUT_TABLES)
def test_computed_positions_have_no_end(config):
    limits = linear_map_of_config(config).limits
    assert limits.positions is None
    assert limits.trained_positions in (POSITIONS, None)
    assert reads(model_of(config), 3 * POSITIONS)
