"""Architectures, each as a tiny random base: trained packed as `Trainer` trains it, and loaded by plain PEFT.

`LORA_LAB_WRITE_DOCS=1 pytest tests/equivalence/test_families.py` writes docs/models.md anew.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from classifiers import CONFIGS, LABELS
from families import FAMILIES
from oracle import Lab, train_alone
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from samples import sample
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer
from workshop import CPU, drain, only, write_base, write_texts

from lora_lab.builtin.catalog import model_folder
from lora_lab.data.tokens import IGNORED
from lora_lab.study.events import Finished, Logged
from lora_lab.study.settings import LoraSettings
from lora_lab.study.targets import placement, trainable_parameters
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.base.architecture import linear_map_of_config
from lora_lab.training.base.loading import load_base
from lora_lab.training.reference_engine import ReferenceEngine

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
IN_FLOAT32 = ("Qwen3-Next", "Qwen3-Next-MoE", "Gemma 2", "Mamba", "Mamba 2")
"""These compute scans or attention in float32 whatever the base's dtype, so that other batch shapes round otherwise."""
NOT_COMPARED = {
    "GPT-2": "`Trainer` divides its loss by the labels of first tokens too, which nothing predicts",
}
"""Where `Trainer`'s losses are others, and why; that plain PEFT reproduces `eval_loss` is tested all the same."""
QUICK = ("Gemma 3",)
STEPS = 3
BY_PARAMETERS = ("Qwen3-Next", "Qwen3-Next-MoE", "DeepSeek-V3")
"""PEFT adapts feed-forward modules of these by `target_parameters`, and draws their first weights in another order."""
EXPERTS = (
    *("Llama 4 (text)", "Qwen2-MoE", "Qwen3-MoE", "Qwen3-Next-MoE", "Mixtral", "Granite 4 (hybrid, MoE)", "OLMoE"),
    *("gpt-oss", "DeepSeek-V3", "Jamba"),
)
"""The mixtures of experts, whose fused weights `target_parameters` adapts."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder / "train.jsonl", 12)
    write_texts(folder / "validation.jsonl", 6, seed=1)
    return folder


@cache
def linears(family):
    return linear_map_of_config(FAMILIES[family])


def plain_base(folder):
    """As a user of transformers loads it; torch has no grouped products of experts in float64."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager").eval()


@torch.no_grad()
def plain_loss(model, tokens) -> float:
    """Loss per label token, one row at a time."""
    nll, count = 0.0, 0
    for ids, labels in zip(tokens.input_ids, tokens.labels, strict=True):
        logits = model(input_ids=torch.from_numpy(np.asarray(ids))[None], use_cache=False).logits[0, :-1]
        own = torch.from_numpy(np.asarray(labels))[1:]
        nll += float(functional.cross_entropy(logits, own, reduction="sum", ignore_index=IGNORED))
        count += int((own != IGNORED).sum())
    return nll / count


def write_family(folder, family) -> None:
    config = FAMILIES[family]
    write_base(folder, config)
    if config.model_type == "qwen2":  # transformers reads any tokenizer beside such a config as Qwen's own kind
        config = type(config)(**config.to_dict() | {"vocab_size": 1024})
        write_base(folder, config)
        AutoTokenizer.from_pretrained(model_folder("builtin/tiny-llama")).save_pretrained(folder)


@pytest.mark.parametrize("family", sample(FAMILIES, QUICK))
def test_a_family_trains_packed_as_alone_and_its_adapter_loads_in_plain_peft(family, texts, tmp_path):
    write_family(tmp_path / "base", family)
    lab = Lab(tmp_path / "base", texts, tmp_path, "float64")
    trials = [
        lab.trial(max_steps=STEPS, learning_rate=1e-2),
        lab.trial({"r": 2, "target_modules": "attention"}, max_steps=STEPS, learning_rate=3e-3, seed=1),
    ]
    engine = lab.engine()
    packed = lab.packed(trials, engine)
    tolerance = 1e-6 if family in IN_FLOAT32 else 1e-9
    held_out = lab.bench.data.splits(trials[0].data).eval
    for number, run in enumerate(packed):
        loaded = PeftModel.from_pretrained(plain_base(tmp_path / "base"), engine.trial_folder(number) / "adapter")
        assert plain_loss(loaded.eval(), held_out) == pytest.approx(run.eval_loss, rel=tolerance)
    for trial, run in zip(trials, packed, strict=True):
        if family in NOT_COMPARED or (family in BY_PARAMETERS and trial.lora.target_modules == "all-linear"):
            continue
        model, config = plain_base(tmp_path / "base"), lora_config(trial.lora, linears(family))
        torch.manual_seed(trial.training.seed)
        model = get_peft_model(model, config)
        alone = train_alone(model, trial, lab.bench.data.splits(trial.data).train, tmp_path)
        assert run.losses == pytest.approx(alone.losses, rel=tolerance)


@pytest.mark.parametrize("blocks", ["single"], indirect=True)  # of the packed engine
@pytest.mark.parametrize("family", sample(EXPERTS, ["Mixtral"]))
def test_experts_train_as_alone_and_their_adapter_loads_in_plain_peft(family, texts, tmp_path):
    write_family(tmp_path / "base", family)
    lab = Lab(tmp_path / "base", texts, tmp_path, "float64")
    lora = {"r": 3, "target_modules": "all-linear", "target_parameters": "experts", "use_rslora": True}
    config = lab.trial(lora, max_steps=STEPS, learning_rate=1e-2, seed=1)
    engine = ReferenceEngine(load_base(config.model, CPU), lab.bench.data, tmp_path / "trials")
    engine.admit(0, config)
    counted = engine.trial(0).model.get_nb_trainable_parameters()[0]
    events = drain(engine)
    [final] = only(events, Finished)
    assert final.metrics["trainable_params"] == counted == trainable_parameters(linears(family), config.lora)

    model, peft_config = plain_base(tmp_path / "base"), lora_config(config.lora, linears(family))
    torch.manual_seed(config.training.seed)
    model = get_peft_model(model, peft_config)
    alone = train_alone(model, config, lab.bench.data.splits(config.data).train, tmp_path)
    tolerance = 1e-6 if family in IN_FLOAT32 else 1e-9
    assert [event.loss for event in only(events, Logged)] == pytest.approx(alone.losses, rel=tolerance)

    adapter = engine.trial_folder(0) / "adapter"
    loaded = PeftModel.from_pretrained(plain_base(tmp_path / "base"), adapter)
    held_out = lab.bench.data.splits(config.data).eval
    assert plain_loss(loaded.eval(), held_out) == pytest.approx(final.metrics["eval_loss"], rel=tolerance)
    tensors = load_file(adapter / "adapter_model.safetensors")
    of_experts = [tensor for name, tensor in tensors.items() if ".experts." in name and ".lora_B." in name]
    assert len(of_experts) == len(linears(family).experts)
    assert all(tensor.any() for tensor in of_experts)


# The page


def row(family) -> str:
    told = placement(linears(family), LoraSettings())
    left = [text for text in told.left_out if not text.startswith("head")]
    tolerance = "1e-6" if family in IN_FLOAT32 else "1e-9"
    same = f"{tolerance}, attention alone\\*" if family in BY_PARAMETERS else tolerance
    same = f"no: {NOT_COMPARED[family]}" if family in NOT_COMPARED else same
    experts = f"yes, {tolerance}" if family in EXPERTS else ""
    return f"| {family} | {'; '.join(told.chosen)} | {'; '.join(left)} | yes | {same} | {experts} | {tolerance} |"


def page() -> str:
    head = """# Models

Architectures that were tried, each as a tiny random base in float64: two trials with different ranks, targets, rates
and seeds trained packed (three steps), the same trials with `Trainer` + `peft` alone (how far the losses of each step
agree, relatively), and the adapters loaded by plain `PeftModel.from_pretrained` (how far that reproduces the logged
`eval_loss`). 1e-6 is for bases that compute scans or attention in float32 in any dtype. With
`target_parameters: experts` the fused weights of experts are adapted too, on the reference engine: how far that agrees
with `Trainer` + `peft`, and with the adapter in plain PEFT. Written by `tests/equivalence/test_families.py`.

| architecture | `all-linear` adapts | left out | packed | as `Trainer` | experts | loads in PEFT |
|---|---|---|---|---|---|---|
"""
    foot = """
\\* PEFT takes the names of these feed-forward modules for those of experts: it loads adapters on them by
`target_parameters`, which needs `lora_dropout: 0` and a base that is not quantized.

Refused in one line: encoders (BERT, RoBERTa, ELECTRA, XLM, XLNet) that are to learn text, since their tokens see later
ones; rows beyond a table of positions (GPT-2, OPT, MPT, ...) or, under dynamic RoPE, beyond the length from which it
changes; checkpoints stored in gptq, awq, fp8, mxfp4 and others; models with code of their own; multimodal models that
transformers does not offer as causal language models (LLaVA, PaliGemma, Mistral 3, Qwen2.5-VL, SmolVLM, InternVL,
Qwen2-Audio, Llama 3.2 Vision). Of those that it does offer (Gemma 3 and 4, Llama 4, Qwen3.5, Fuyu, GOT-OCR2) every
preset adapts the language model alone. Under longrope (Phi-3 with 128k) trials with rows beyond its switch run on the
reference engine.

## Classification

With `task_type: SEQ_CLS`, as tiny random bases in float64: trials on texts and on pairs of texts, on the reference
engine, against plain `AutoModelForSequenceClassification`, `get_peft_model` and `Trainer` (losses of 12 steps, and the
adapter with its head), and loaded by plain `PeftModel.from_pretrained`. Tested by
`tests/equivalence/test_heads_as_trainer.py`.

| architecture | `all-linear` adapts | left out | as `Trainer` | loads in PEFT |
|---|---|---|---|---|
"""
    families = "\n".join(row(family) for family in FAMILIES)
    return head + families + "\n" + foot + "\n".join(row_of_classifier(family) for family in CONFIGS) + "\n"


def row_of_classifier(family) -> str:
    told = placement(linear_map_of_config(CONFIGS[family][0], LABELS), LoraSettings())
    return f"| {family} | {'; '.join(told.chosen)} | {'; '.join(told.left_out)} | 1e-9 | 1e-9 |"


def test_the_page_on_models_says_what_is_tried():
    assert {family for family in FAMILIES if linears(family).experts} == set(EXPERTS)
    text = page()
    if os.environ.get("LORA_LAB_WRITE_DOCS"):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, "run it with LORA_LAB_WRITE_DOCS=1"
    assert len(re.findall(r"^\| .* \| 1e-[69] \|$", text, re.MULTILINE)) >= 20
