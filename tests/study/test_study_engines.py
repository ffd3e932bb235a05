"""Which engine trains a configuration, and the reason that is given for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lora_lab.study.data_settings import DatasetRef, DataSettings
from lora_lab.study.engines import engine_for
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig


def trial(lora: dict[str, object], **training: object) -> TrialConfig:
    return TrialConfig(
        model=ModelSettings(model_name_or_path="base"),
        data=DataSettings(train=DatasetRef(path="text.jsonl")),
        training=TrainingSettings.model_validate(training),
        lora=LoraSettings.model_validate(lora),
    )


@pytest.mark.parametrize(
    ("lora", "reason"),
    [
        ({"use_dora": True}, "use_dora trains magnitudes"),
        ({"bias": "all"}, "bias all trains biases"),
        ({"bias": "lora_only"}, "bias lora_only trains biases"),
        ({"modules_to_save": ["lm_head", "norm"]}, "modules_to_save trains lm_head, norm in full"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa changes the base"),
        ({"init_lora_weights": "olora"}, "init_lora_weights olora changes the base"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights loftq changes the base"),
        ({"use_dora": True, "bias": "all"}, "beside A and B; bias all"),
        ({"target_parameters": "experts"}, "target_parameters trains the fused weights of experts"),
    ],
    ids=str,
)
def test_what_the_packed_engine_does_not_do_runs_on_the_reference_engine(lora: dict[str, object], reason: str) -> None:
    choice = engine_for(trial(lora))
    assert choice.name == "reference"
    assert reason in choice.reason


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True, "lora_dropout": 0.1},
        *({"init_lora_weights": init} for init in (True, False, "gaussian", "orthogonal")),
        {"target_modules": "all-linear+head", "layers": "last_half"},
    ],
    ids=str,
)
def test_everything_else_is_packed(lora: dict[str, object]) -> None:
    choice = engine_for(trial(lora, optim="sgd", gradient_checkpointing=True, loraplus_lr_ratio=4.0))
    assert choice.name == "packed"
    assert choice.reason


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4", "fp4"])
def test_only_int8_on_cuda_is_not_packed_among_the_quantized_bases(quantization: str) -> None:
    config = trial({}).changed(model={"quantization": quantization})
    assert engine_for(config).name == "packed"
    choice = engine_for(config, is_cuda=True)
    assert choice.name == ("reference" if quantization == "int8" else "packed")
    assert ("outliers" in choice.reason) == (quantization == "int8")


def test_the_choice_needs_no_torch() -> None:
    code = "import sys, lora_lab.study.engines; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
