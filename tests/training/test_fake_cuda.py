"""Packed steps on CUDA's own dispatch, without a GPU: one device, one dtype in a product, no wait for the device.

They need a CUDA build of torch, which has an environment of its own (`make test-fake-cuda`).
"""

from __future__ import annotations

import pytest
import torch
from fake_cuda_step import CudaSteps
from families import FAMILIES
from workshop import llama_config

from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.packed.blocks import SETTING

pytestmark = [
    pytest.mark.fake_cuda,
    pytest.mark.skipif(torch.version.cuda is None, reason="a CPU build of torch: run `make test-fake-cuda`"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run the tests marked `gpu`"),
]

BASES = {
    "bf16": {"dtype": "bfloat16"},
    "float32": {"dtype": "float32"},
    "nf4": {"quantization": "nf4"},
    "nf4, double": {"quantization": "nf4", "double_quant": True},
}
CASES = {
    "plain": {},
    "dropout": {"lora": {"lora_dropout": 0.1}},
    "checkpointing": {"training": {"gradient_checkpointing": True}},
    "head": {"lora": {"target_modules": ["q_proj", "lm_head"]}},
    "sgd": {"training": {"optim": "sgd"}},
    "8-bit AdamW": {"training": {"optim": "adamw_8bit"}},
    "LoRA+": {"training": {"loraplus_lr_ratio": 8.0}},
    "several examples in a row": {"data": {"packing": True}},
}
TRIED = (
    "Llama 3", "Qwen2", "Qwen3", "Mistral", "Gemma 2", "Gemma 3 (text)", "Phi-3 and 4", "GPT-2", "GPT-NeoX", "Granite",
    "OLMo2", "SmolLM3", "StarCoder2", "Cohere", "StableLM", "GLM-4",
)  # fmt: skip


def trials(base: dict, ranks=(4, 4, 8), **changes) -> list[TrialConfig]:
    """Two that make a block, and one of another rank."""
    return [
        TrialConfig(
            model=ModelSettings(model_name_or_path="memory", **base),
            data=DataSettings(train="memory", max_length=32, **changes.get("data", {})),
            lora=LoraSettings(r=r, **changes.get("lora", {})),
            training=TrainingSettings(per_device_train_batch_size=2, max_steps=3, **changes.get("training", {})),
        )
        for r in ranks
    ]


@pytest.mark.parametrize("blocks", ["merged", "single"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", BASES)
def test_a_step_asks_cuda_for_nothing_that_it_refuses(monkeypatch, base, case, blocks):
    monkeypatch.setenv(SETTING, blocks)
    pack = trials(BASES[base], **CASES[case])
    steps = CudaSteps(llama_config(num_hidden_layers=2), pack[0].model)
    launched = steps.step(pack, 32, several_examples=case.startswith("several"))
    assert launched["gradients"] > 100
    assert launched["optimizer"] > len(pack)
    assert not steps.waits


@pytest.mark.parametrize("base", ["bf16", "nf4"])
@pytest.mark.parametrize("family", TRIED)
def test_a_step_of_a_family(monkeypatch, family, base):
    monkeypatch.setenv(SETTING, "merged")
    pack = trials(BASES[base], lora={"target_modules": "all-linear"})
    steps = CudaSteps(FAMILIES[family], pack[0].model)
    assert steps.step(pack, 32)["gradients"] > 100
    assert not steps.waits


@pytest.mark.parametrize("base", ["bf16", "nf4"])
@pytest.mark.parametrize("trials_of_a_pack", [8, 16])
def test_a_block_launches_what_one_trial_launches(monkeypatch, base, trials_of_a_pack):
    monkeypatch.setenv(SETTING, "merged")
    found = {}
    for count in (1, trials_of_a_pack):
        pack = trials(BASES[base], ranks=(4,) * count)
        few, more = (CudaSteps(llama_config(num_hidden_layers=layers), pack[0].model) for layers in (1, 2))
        found[count] = more.step(pack, 32)["gradients"] - few.step(pack, 32)["gradients"]
    assert found[trials_of_a_pack] <= 1.05 * found[1]


@pytest.mark.parametrize(
    ("places", "said"),
    [(("cuda:0", "cpu"), "device"), (("cuda:0", "cuda:0"), "several dtypes")],
    ids=["devices", "dtypes"],
)
def test_what_cuda_refuses_is_refused_here(places, said):
    """Otherwise the others would show nothing."""
    pack = trials(BASES["bf16"])
    steps = CudaSteps(llama_config(num_hidden_layers=1), pack[0].model)
    weight = steps._base.model.model.layers[0].self_attn.q_proj._parameters
    with steps._mode:
        shape = weight["weight"].shape
        wrong = torch.empty(shape, dtype=torch.bfloat16 if said == "device" else torch.float32, device=places[1])
        weight["weight"] = torch.nn.Parameter(wrong, requires_grad=False)
    with pytest.raises(RuntimeError, match=said):
        steps.step(pack, 32)
