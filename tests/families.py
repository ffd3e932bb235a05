"""Tiny configs of the architectures that are tried: all have rows of 64 positions and the workshop's vocabulary."""

from __future__ import annotations

from transformers import (
    BambaConfig,
    BloomConfig,
    CohereConfig,
    DeepseekV3Config,
    FalconConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoeConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)
from workshop import VOCABULARY

IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": VOCABULARY - 2, "pad_token_id": 0}
EQUAL_HEADS = IDS | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.08,
}
GROUPED = EQUAL_HEADS | {"num_key_value_heads": 2}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "initializer_range": 0.08} | IDS
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
LINEAR_ATTENTION = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
GEMMA = GROUPED | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}

OPT = IDS | {
    "hidden_size": 32,
    "ffn_dim": 64,
    "word_embed_proj_dim": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "init_std": 0.08,
}

FAMILIES = {
    "Llama 3": LlamaConfig(**GROUPED),
    "Llama 4 (text)": Llama4TextConfig(
        **GROUPED, head_dim=8, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=32
    ),
    "Qwen2": Qwen2Config(**GROUPED),
    "Qwen2-MoE": Qwen2MoeConfig(**GROUPED, moe_intermediate_size=16, shared_expert_intermediate_size=16, **EXPERTS),
    "Qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "Qwen3-MoE": Qwen3MoeConfig(**GROUPED, head_dim=8, moe_intermediate_size=16, **EXPERTS),
    "Qwen3-Next": Qwen3NextConfig(**GROUPED | {"num_hidden_layers": 4}, **LINEAR_ATTENTION, head_dim=8, num_experts=0),
    "Qwen3-Next-MoE": Qwen3NextConfig(
        **GROUPED | {"num_hidden_layers": 4},
        **LINEAR_ATTENTION,
        **EXPERTS,
        head_dim=8,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "Mistral": MistralConfig(**GROUPED, head_dim=8, sliding_window=16),
    "Mixtral": MixtralConfig(**GROUPED, **LOCAL_EXPERTS),
    "Gemma 2": Gemma2Config(**GEMMA | {"sliding_window": 32}),  # a pad that sees no token makes Trainer's loss NaN
    "Gemma 3 (text)": Gemma3TextConfig(**GEMMA),
    "Gemma 3": Gemma3Config(text_config=GEMMA, vision_config=VISION, mm_tokens_per_image=4),
    "Phi-2": PhiConfig(**EQUAL_HEADS),
    "Phi-3 and 4": Phi3Config(**GROUPED),
    "GPT-2": GPT2Config(**GPT, **NO_DROPOUT),
    "GPT-J": GPTJConfig(**GPT, rotary_dim=4, **NO_DROPOUT),
    "GPT-NeoX": GPTNeoXConfig(**EQUAL_HEADS),
    "Falcon": FalconConfig(
        **IDS,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        new_decoder_architecture=True,
        num_kv_heads=2,
        initializer_range=0.08,
    ),
    "Bloom": BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.08),
    "OPT": OPTConfig(**OPT, dropout=0.0),
    "Granite": GraniteConfig(**GROUPED),
    "Granite 4 (hybrid, MoE)": GraniteMoeHybridConfig(
        **GROUPED,
        **LOCAL_EXPERTS,
        shared_intermediate_size=32,
        layer_types=["mamba", "attention"],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
    ),
    "OLMo2": Olmo2Config(**GROUPED),
    "OLMoE": OlmoeConfig(**GROUPED, **EXPERTS),
    "SmolLM3": SmolLM3Config(**GROUPED),
    "gpt-oss": GptOssConfig(**GROUPED, **LOCAL_EXPERTS, head_dim=8, sliding_window=16),
    "DeepSeek-V3": DeepseekV3Config(
        **EQUAL_HEADS | {"num_key_value_heads": 4},
        moe_intermediate_size=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        n_shared_experts=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "StarCoder2": Starcoder2Config(**GROUPED, residual_dropout=0.0, embedding_dropout=0.0),
    "Cohere": CohereConfig(**GROUPED),
    "StableLM": StableLmConfig(**GROUPED),
    "GLM-4": Glm4Config(**GROUPED, head_dim=8),
    "Mamba": MambaConfig(**IDS, hidden_size=32, num_hidden_layers=2, state_size=8, initializer_range=0.08),
    "Mamba 2": Mamba2Config(
        **IDS, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=1
    ),
    "Falcon-H1": FalconH1Config(**GROUPED, **MAMBA_2, mamba_d_ssm=64),
    "Jamba": JambaConfig(
        **GROUPED,
        **EXPERTS,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=4,
    ),
    "Bamba": BambaConfig(**GROUPED, attn_layer_indices=[1], **MAMBA_2),
    "RecurrentGemma": RecurrentGemmaConfig(
        **GROUPED | {"num_hidden_layers": 3},
        lru_width=32,
        attention_window_size=16,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "LFM2": Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"], block_ff_dim=64),
}
