"""Models that read images or sound beside text: the language model alone is adapted, or one line says what to give."""

from __future__ import annotations

import pytest
import torch
from families import GEMMA, GROUPED, LINEAR_ATTENTION, VISION
from samples import sample
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    FuyuConfig,
    Gemma3Config,
    Gemma3nConfig,
    Gemma4Config,
    GotOcr2Config,
    InternVLConfig,
    Llama4Config,
    LlamaConfig,
    LlavaConfig,
    Mistral3Config,
    MllamaConfig,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen2AudioConfig,
    Qwen3_5Config,
    SmolVLMConfig,
)
from transformers.utils import is_timm_available
from workshop import Bench, only, write_base, write_texts

from lora_lab.common.errors import InputError
from lora_lab.study.events import Evaluated
from lora_lab.study.settings import LoraSettings
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.architecture import linear_map_of_config

PRESETS = ("attention", "mlp", "all-linear")
LLAMA_4 = GROUPED | {
    "head_dim": 8,
    "intermediate_size_mlp": 64,
    "num_local_experts": 2,
    "attention_chunk_size": 32,
}
COMPOSITE = {
    "Gemma 3": Gemma3Config(text_config=GEMMA, vision_config=VISION, mm_tokens_per_image=4),
    "Gemma 4": Gemma4Config(text_config=GEMMA, vision_config=VISION),
    "Llama 4": Llama4Config(
        text_config=LLAMA_4,
        vision_config=VISION | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    ),
    "Qwen3.5": Qwen3_5Config(
        text_config=GROUPED | LINEAR_ATTENTION | {"num_hidden_layers": 4, "head_dim": 8},
        vision_config={"depth": 2, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32},
    ),
    "Fuyu": FuyuConfig(**GROUPED),
    "GOT-OCR2": GotOcr2Config(
        text_config=GROUPED | {"model_type": "qwen2"},
        vision_config={"hidden_size": 16, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
    ),
}
MLLAMA_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_global_layers": 1,
    "attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 28,
    "patch_size": 14,
    "vision_output_dim": 32,
    "intermediate_layers_indices": [0],
}
NO_LANGUAGE_MODEL = {
    "LLaVA": LlavaConfig(text_config=LlamaConfig(**GROUPED), vision_config=CLIPVisionConfig(**VISION)),
    "PaliGemma": PaliGemmaConfig(
        text_config=GEMMA | {"model_type": "gemma2"}, vision_config=VISION | {"model_type": "siglip_vision_model"}
    ),
    "Mistral 3": Mistral3Config(
        text_config=GROUPED | {"model_type": "mistral"}, vision_config=VISION | {"model_type": "pixtral"}
    ),
    "Qwen2.5-VL": Qwen2_5_VLConfig(text_config=GROUPED),
    "SmolVLM": SmolVLMConfig(text_config=GROUPED | {"model_type": "llama"}, vision_config=VISION),
    "InternVL": InternVLConfig(text_config=GROUPED | {"model_type": "qwen2"}, vision_config=VISION),
    "Qwen2-Audio": Qwen2AudioConfig(text_config=GROUPED | {"model_type": "qwen2"}),
    "Llama 3.2 Vision": MllamaConfig(
        text_config=GROUPED | {"cross_attention_layers": [1]}, vision_config=MLLAMA_VISION
    ),
}


@pytest.mark.parametrize("config", COMPOSITE.values(), ids=COMPOSITE)
def test_every_preset_takes_modules_of_the_language_model_alone(config):
    there = linear_map_of_config(config)
    layers = config.get_text_config().num_hidden_layers
    for preset in PRESETS:
        names = resolve_targets(there, LoraSettings(target_modules=preset))
        assert not [name for name in names if "vision" in name or "multi_modal" in name or "projector" in name]
        assert {there.layer_of(name) for name in names} - {None} <= set(range(layers))
    assert there.num_layers == layers


# As published checkpoints are stored: with the tower, under the names of the whole model.
STORED = ("Gemma 3", "Llama 4", "GOT-OCR2")


@pytest.mark.parametrize("name", sample(STORED, ["Llama 4"]))
def test_a_checkpoint_with_its_tower_trains_on_text(name, tmp_path):
    config = COMPOSITE[name]
    write_base(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).double().save_pretrained(tmp_path / "base")
    for split, rows in (("train", 8), ("validation", 4)):
        write_texts(tmp_path / f"{split}.jsonl", rows)
    bench = Bench(tmp_path / "base", tmp_path, tmp_path)
    trials = [bench.trial(max_steps=2, lora={"r": r, "target_modules": "all-linear"}) for r in (2, 4)]
    assert len(only(bench.run(*trials), Evaluated)) == 2


def one_line(error: InputError, *words: str) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400
    for text in words:
        assert text in str(error)


@pytest.mark.parametrize("config", NO_LANGUAGE_MODEL.values(), ids=NO_LANGUAGE_MODEL)
def test_one_that_has_no_causal_language_model_is_refused_with_what_to_give(config):
    with pytest.raises(InputError) as refused:
        linear_map_of_config(config)
    one_line(refused.value, f"{type(config).__name__} is not", "its language model alone")


@pytest.mark.skipif(is_timm_available(), reason="the package is here")
def test_one_that_needs_a_package_that_is_not_here_says_which():
    with pytest.raises(InputError) as refused:
        linear_map_of_config(Gemma3nConfig(text_config=GEMMA))
    one_line(refused.value, "Gemma3nConfig needs a package that is not here", "timm")
