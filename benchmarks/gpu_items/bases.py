"""Bases of random weights at the shapes of real models, and random tokens: speed and memory do not depend on values."""

from __future__ import annotations

import traceback
from typing import Any

import bitsandbytes
import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from gpu_items.device import device, free_all
from lora_lab.data.tokens import TokenizedDataset
from lora_lab.study.settings import ModelSettings
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.adapters import Weights
from lora_lab.training.base.architecture import linear_map
from lora_lab.training.base.loading import frozen_base
from lora_lab.training.datasets import TokenizedSplits

SHAPES = {
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
    },
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "rope_theta": 500000.0,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "toy": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 1024,
    },
}


def llama(shape: str) -> Any:

    return LlamaConfig(**SHAPES[shape])


def random_model(config: Any) -> Any:
    """Random weights, drawn where they stay; by way of a model without any, should the short way fail on the device."""

    torch.manual_seed(0)
    try:
        with device():
            return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    except Exception:  # noqa: BLE001 -- whatever the short way meets on a device
        traceback.print_exc()
        free_all()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        return filled(model, config)


def filled(model: Any, config: Any) -> Any:
    model.to_empty(device=device())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            fresh = type(module)(config=config, device=device())
            module.inv_freq, module.original_inv_freq = fresh.inv_freq, fresh.inv_freq
    model.tie_weights()
    return model


def make_base(shape: str, quantization: str, double: bool = False) -> Any:

    settings = ModelSettings(
        model_name_or_path=f"random/{shape}", quantization=quantization, double_quant=double, dtype="bfloat16"
    )
    model = random_model(llama(shape))
    linears = linear_map(model)
    if quantization != "none":
        head = model.get_output_embeddings()
        for name, module in list(model.named_modules()):
            if type(module) is not nn.Linear or module is head:
                continue
            small = bitsandbytes.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=torch.bfloat16,
                compress_statistics=double,
                quant_type=quantization,
                device="meta",
            )
            small.weight = bitsandbytes.nn.Params4bit(
                module.weight.data,
                requires_grad=False,
                quant_type=quantization,
                compress_statistics=double,
                module=small,
            )
            model.set_submodule(name, small.to(device()))
        model.is_loaded_in_4bit = True
    return frozen_base(
        model, settings, torch.bfloat16, device(), linears=linears, tokenizer=None, location="random"
    ), settings


def cheap_weights(lora: Any, linears: Any, seed: int, _: Any) -> dict:
    """In the place of `initial_weights`, whose numbers one core draws: two launches on the device."""

    names = resolve_targets(linears, lora)
    shapes = [linears.shapes[name] for name in names]
    sizes = [lora.r * size for shape in shapes for size in (shape.d_in, shape.d_out)]
    generator = torch.Generator(device()).manual_seed(seed)
    flat = torch.randn(sum(sizes), device=device(), generator=generator).mul_(0.01)
    parts = iter(torch.split(flat, sizes))
    return {
        name: Weights(next(parts).view(lora.r, shape.d_in), next(parts).view(shape.d_out, lora.r).mul_(0.1))
        for name, shape in zip(names, shapes, strict=True)
    }


class Tokens:
    """Stands where a study has its data: random tokens, all rows of the length that a trial asks for."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._made = vocabulary, {}

    def splits(self, settings: Any) -> Any:

        length = settings.max_length
        if length not in self._made:
            rows = tuple(np.random.default_rng(0).integers(3, self._vocabulary, (64, length)))
            train = TokenizedDataset(rows, rows, fingerprint="random", notes=())
            held_out = TokenizedDataset(rows[:8], rows[:8], fingerprint="random", notes=())
            self._made[length] = TokenizedSplits(train, held_out, None, {}, ())
        return self._made[length]
