"""A k-bit base with the precisions that it has on a CUDA device, on a CPU."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from workshop import CPU

from lora_lab.study.settings import ModelSettings
from lora_lab.training.base.loading import Base, architecture, frozen_base, quantization_config


def half_base(folder, dtype=torch.bfloat16, quantization="nf4") -> Base:
    """Loaded as `load_base` does; `dtype` is that of the quantized products, the adapters' products and the head."""
    settings = ModelSettings(model_name_or_path=str(folder), quantization=quantization)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=quantization_config(settings, dtype), device_map={"": CPU}
    )
    return frozen_base(
        model,
        settings,
        dtype,
        CPU,
        linears=architecture(settings),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        location=str(folder),
        device_type="cuda",
    )
