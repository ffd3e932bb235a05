"""What servers are given computes what PEFT computes from the trained adapter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from export_made import exported
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from samples import sample
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from lora_lab.builtin.catalog import model_folder
from lora_lab.common.errors import InputError
from lora_lab.exporters.handover import hand_over
from lora_lab.exporters.targets import SERVERS
from lora_lab.training.base.adapters import lora_config

IDS = torch.arange(5, 45).reshape(2, 20)
CLOSE = 2e-6
"""Of the largest logit, in float32."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Bases in float32: one file with a tied head, several files with a head of its own, and one with biases."""
    folder = tmp_path_factory.mktemp("bases")
    tied = model_folder("builtin/tiny-llama")
    model = AutoModelForCausalLM.from_pretrained(tied, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tied)
    model.save_pretrained(folder / "tied")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() * 1.1)
    model.save_pretrained(folder / "split", max_shard_size="1MB")
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=1024, n_positions=128, n_embd=48, n_layer=2, n_head=4))
    gpt2.save_pretrained(folder / "gpt2")
    for name in ("tied", "split", "gpt2"):
        tokenizer.save_pretrained(folder / name)
    return folder


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def close(found, meant):
    return float((found - meant).abs().max()) < CLOSE * float(meant.abs().max())


def trained(data, base, **lora):
    """A trial on a base with a made-up adapter, and the logits of PEFT with it."""
    transposed = base.name == "gpt2"
    trial = exported(
        data, model={"model_name_or_path": str(base)}, lora={"target_modules": "all-linear", "layers": "all"} | lora
    )
    config = lora_config(trial.config.lora, trial.linears, fan_in_fan_out=transposed)
    torch.manual_seed(1)
    model = get_peft_model(load(base), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "magnitude" not in name:
                parameter.add_(0.005 * torch.randn_like(parameter))
    model.save_pretrained(trial.adapter)
    return trial, logits(PeftModel.from_pretrained(load(base), trial.adapter).eval())


FOLDED = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "fractional alpha": {"lora_alpha": 22.5, "lora_dropout": 0.1},
    "layers": {"layers": [1, 3], "target_modules": "mlp"},
    "names": {"target_modules": r".*(0\.self_attn\.q_proj|2\.mlp\.up_proj)"},
    "head": {"target_modules": "all-linear+head"},
}


@pytest.mark.parametrize("name", FOLDED)
def test_the_folded_adapter_is_the_same_function(data, bases, tmp_path, name):
    trial, meant = trained(data, bases / "split", **FOLDED[name])
    folder = hand_over(trial, "vllm", tmp_path).folder / "serve"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["lora_alpha"] == config["r"]
    assert (config["use_rslora"], config["lora_dropout"], config["base_model_name_or_path"]) == (False, 0.0, "base")
    assert all("." not in name for name in config["target_modules"])
    found = logits(PeftModel.from_pretrained(load(bases / "split"), folder).eval())
    assert close(found, meant)
    assert float((meant - logits(load(bases / "split"))).abs().max()) > 0.02


@pytest.mark.parametrize("name", ["plain", "rslora", "layers", "names"])
def test_the_mlx_folder_is_the_same_function(data, bases, tmp_path, name):
    """By the rule of mlx-lm: `y = x W' + scale (x lora_a) lora_b` for every module under `keys`."""
    trial, meant = trained(data, bases / "split", **FOLDED[name])
    folder = hand_over(trial, "mlx", tmp_path).folder / "serve"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["fine_tune_type"], config["num_layers"]) == ("lora", -1)
    parameters, arrays = config["lora_parameters"], load_arrays(folder / "adapters.safetensors")
    assert sorted(arrays) == sorted(f"{key}.lora_{side}" for key in parameters["keys"] for side in "ab")
    assert parameters["rank"] == 8
    model = load(bases / "split")
    with torch.no_grad():
        for key in parameters["keys"]:
            change = np.float32(parameters["scale"]) * arrays[f"{key}.lora_a"] @ arrays[f"{key}.lora_b"]
            model.get_submodule(key).weight += torch.from_numpy(change.T.copy())
    assert close(logits(model), meant)


MERGED = FOLDED | {
    "dora": {"use_dora": True},
    "dora and rslora": {"use_dora": True, "use_rslora": True},
    "the head in full": {"modules_to_save": ["lm_head"], "target_modules": "attention"},
    "a norm in full": {"modules_to_save": ["model.norm"]},
}


@pytest.mark.parametrize(
    ("name", "base"),
    sample(
        [(name, base) for name in MERGED for base in ("tied", "split")],
        [
            *[(name, "tied") for name in ("plain", "head", "the head in full", "a norm in full")],
            *[(name, "split") for name in ("fractional alpha", "layers", "head", "dora and rslora")],
        ],
    ),
)
def test_the_merged_model_is_the_same_function(data, bases, tmp_path, name, base):
    trial, meant = trained(data, bases / base, **MERGED[name])
    folder = hand_over(trial, "merged", tmp_path).folder / "model"
    assert close(logits(load(folder)), meant)
    assert {path.name for path in folder.glob("*.safetensors")} == {
        path.name for path in (bases / base).glob("*.safetensors")
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("a cat") == AutoTokenizer.from_pretrained(bases / base)("a cat")


def test_only_what_is_merged_needs_no_base_beside_it(data, bases, tmp_path):
    trial, _ = trained(data, bases / "tied")
    for target, beside in (("merged", False), ("vllm", True)):
        folder = hand_over(trial, target, tmp_path).folder
        assert (folder / "base").exists() == beside
        assert ("it needs no base beside it" in (folder / "README.md").read_text()) != beside
        assert ("`base` is a link" in (folder / "README.md").read_text()) == beside


@pytest.mark.parametrize("lora", [{}, {"bias": "all"}, {"bias": "lora_only"}, {"use_dora": True}])
def test_merging_takes_transposed_weights_and_biases(data, bases, tmp_path, lora):
    trial, meant = trained(data, bases / "gpt2", **lora)
    folder = hand_over(trial, "merged", tmp_path).folder / "model"
    assert close(logits(load(folder)), meant)


def test_merged_weights_have_the_dtype_of_the_base(data, tmp_path):
    base = model_folder("builtin/tiny-llama")
    trial, meant = trained(data, base)
    export = hand_over(trial, "merged", tmp_path)
    assert [remark.field for remark in export.warnings] == ["model.dtype"]
    before, after = (load_file(folder / "model.safetensors") for folder in (base, export.folder / "model"))
    assert {name: tensor.dtype for name, tensor in after.items()} == {
        name: tensor.dtype for name, tensor in before.items()
    }
    assert float((logits(load(export.folder / "model")) - meant).abs().max()) < 0.05


def test_a_quantized_trial_is_merged_into_the_base_as_it_was(data, bases, tmp_path):
    trial, meant = trained(data, bases / "split")
    model = trial.config.model.model_copy(update={"quantization": "nf4"})
    quantized = trial.result.config.model_copy(update={"model": model})
    from dataclasses import replace

    export = hand_over(replace(trial, result=replace(trial.result, config=quantized)), "merged", tmp_path)
    [warning] = [remark for remark in export.warnings if remark.field == "model.quantization"]
    assert "not the model that was measured" in warning.text
    assert close(logits(load(export.folder / "model")), meant)


def test_only_one_file_of_weights_is_in_memory(data, bases, tmp_path, monkeypatch):
    """Every file is written before the next one is opened."""
    import lora_lab.training.merging as merging

    calls = []
    monkeypatch.setattr(merging, "safe_open", lambda path, **how: calls.append("open") or safe_open(path, **how))
    save = merging.save_file
    monkeypatch.setattr(merging, "save_file", lambda *what, **how: calls.append("save") or save(*what, **how))
    trial, _ = trained(data, bases / "split")
    hand_over(trial, "merged", tmp_path)
    assert calls == ["open", "save"] * (len(calls) // 2)
    assert len(calls) >= 6


def test_a_base_whose_files_have_other_names_is_refused(data, bases, tmp_path):
    trial, _ = trained(data, bases / "tied")
    tensors = load_file(bases / "tied" / "model.safetensors")
    other = tmp_path / "other"
    load(bases / "tied").save_pretrained(other)
    from safetensors.torch import save_file

    save_file({f"language.{name}": tensor for name, tensor in tensors.items()}, other / "model.safetensors")
    from dataclasses import replace

    with pytest.raises(InputError, match=r"have no model\.layers\.0.*merge_and_unload"):
        hand_over(replace(trial, location=str(other)), "merged", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("r", "limit"), [(1, 1), (2, 8), (8, 8), (9, 16), (16, 16), (65, 128), (200, 256), (300, 320), (321, 512)]
)
def test_vllm_is_told_the_next_rank_that_it_takes(data, bases, tmp_path, r, limit):
    trial, _ = trained(data, bases / "tied", r=r, target_modules=["k_proj"], layers=[0])
    assert f"--max-lora-rank {limit} " in hand_over(trial, "vllm", tmp_path).command


def test_the_commands_name_the_adapter_and_the_base(data, bases, tmp_path):
    trial, _ = trained(data, bases / "tied", target_modules=["q_proj", "v_proj"])
    commands = {target: hand_over(trial, target, tmp_path).command for target in SERVERS}
    assert commands == {
        "vllm": "vllm serve base --enable-lora --max-lora-rank 8 --lora-modules handover-3=serve",
        "sglang": "python -m sglang.launch_server --model-path base --enable-lora --lora-paths handover-3=serve "
        "--max-lora-rank 8 --lora-target-modules q_proj v_proj",
        "llama-cpp": "python convert_lora_to_gguf.py --base base --outfile adapter.gguf serve && "
        "python convert_hf_to_gguf.py base --outfile base.gguf && llama-cli -m base.gguf --lora adapter.gguf",
        "ollama": "python convert_lora_to_gguf.py --base base --outfile adapter.gguf serve && "
        "ollama create handover-3 && ollama run handover-3",
        "mlx": "mlx_lm.generate --model base --adapter-path serve --prompt 'Hello'",
        "merged": "transformers serve model",
    }
    assert (tmp_path / "ollama" / "Modelfile").read_text() == "FROM ./base\nADAPTER ./adapter.gguf\n"
