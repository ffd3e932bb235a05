"""Trials whose adapter is on the fused weights of experts, in other trainers and servers."""

from __future__ import annotations

import runpy

import pytest
import yaml
from export_made import exported
from families import FAMILIES
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from samples import sample
from test_serving import close, load, logits, trained
from workshop import write_base

from lora_lab.common.errors import InputError
from lora_lab.exporters.handover import hand_over
from lora_lab.exporters.targets import SERVERS
from lora_lab.study.targets import trainable_parameters

LORA = {"target_modules": "attention", "layers": "all", "target_parameters": "experts"}
ENDINGS = ["experts.down_proj", "experts.gate_up_proj"]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    write_base(folder, FAMILIES["Mixtral"])
    return folder


def test_the_script_adapts_what_the_trial_adapts(data, mixture, tmp_path):
    trial = exported(data, model={"model_name_or_path": str(mixture)}, lora=LORA | {"layers": [1]})
    folder = hand_over(trial, "peft", tmp_path).folder
    lora = runpy.run_path(str(folder / "train_peft.py"), run_name="read")["LORA"]
    model = get_peft_model(load(mixture), LoraConfig(**lora))
    assert model.get_nb_trainable_parameters()[0] == trainable_parameters(trial.linears, trial.config.lora)
    adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A." in name}
    assert all("layers.1." in name for name in adapted)
    assert sum("experts" in name for name in adapted) == 2


@pytest.mark.parametrize(
    ("target", "file", "key"),
    [
        ("trl", "trl.yaml", "lora_target_parameters"),
        ("axolotl", "axolotl.yaml", "lora_target_parameters"),
        ("ms-swift", "swift.yaml", "target_parameters"),
    ],
)
def test_trainers_that_know_parameters_are_told_of_them(data, mixture, tmp_path, target, file, key):
    trial = exported(data, model={"model_name_or_path": str(mixture)}, lora=LORA)
    export = hand_over(trial, target, tmp_path)
    assert yaml.safe_load((export.folder / file).read_text())[key] == ENDINGS
    assert ("lora.init_lora_weights" in {remark.field for remark in export.warnings}) == (target == "axolotl")


def test_unsloth_is_told_of_experts_and_of_none(data, mixture, tmp_path):
    """Where nothing is said, it takes experts for meant by the names of modules."""
    for parameters, written in (("experts", ENDINGS), ("none", [])):
        lora = LORA | {"target_parameters": parameters}
        trial = exported(data, model={"model_name_or_path": str(mixture)}, lora=lora)
        script = (hand_over(trial, "unsloth", tmp_path / parameters).folder / "train_unsloth.py").read_text()
        assert f"'target_parameters': {written}" in " ".join(script.replace('"', "'").split()).replace("[ ", "[")


def test_the_others_refuse_it_by_name_with_who_can(data, mixture, tmp_path):
    trial = exported(data, model={"model_name_or_path": str(mixture)}, lora=LORA)
    [refusal] = hand_over(trial, "llama-factory", tmp_path).refusals
    assert refusal.text == (
        "lora.target_parameters: experts.down_proj, experts.gate_up_proj: LLaMA-Factory 0.9.5: it has no key for "
        "parameters; peft, trl, axolotl, unsloth and ms-swift can"
    )
    for server in SERVERS:
        if server != "merged":
            [refusal] = hand_over(trial, server, tmp_path).refusals
            assert refusal.text.endswith("fused weights of experts are not written for it; merged can")


MERGED = [
    ("Mixtral", {"use_rslora": True}),
    ("gpt-oss", {"bias": "all", "layers": [1]}),
    ("Qwen2-MoE", {"modules_to_save": ["lm_head"]}),
    ("DeepSeek-V3", {}),
    ("Jamba", {"target_modules": "none"}),
]


@pytest.mark.parametrize(("family", "lora"), sample(MERGED, MERGED[:1]), ids=str)
def test_the_merged_model_is_the_same_function_in_the_same_files(data, tmp_path, family, lora):
    base = tmp_path / "base"
    write_base(base, FAMILIES[family])
    trial, meant = trained(data, base, r=4, **LORA | lora)
    folder = hand_over(trial, "merged", tmp_path).folder / "model"
    assert close(logits(load(folder)), meant)
    assert float((meant - logits(load(base))).abs().max()) > 1e-3
    assert contents(folder) == contents(base)


def contents(folder):
    """Name, shape and dtype of everything in the files."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 -- not a dictionary
                tensor = weights.get_tensor(name)
                found[name] = (tensor.shape, tensor.dtype)
    return found


def test_an_adapter_on_a_tied_head_and_experts_is_not_merged(data, tmp_path):
    config = FAMILIES["Mixtral"]
    write_base(tmp_path / "base", type(config)(**config.to_dict() | {"tie_word_embeddings": True}))
    trial, _ = trained(data, tmp_path / "base", r=4, **LORA | {"target_modules": "all-linear+head"})
    with pytest.raises(InputError, match=r"--to merged: the adapter is on experts and on a head that is tied"):
        hand_over(trial, "merged", tmp_path)
