"""A base is loaded from safetensors and JSON alone; everything else is refused in one line with a way out."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest
import torch
from workshop import CPU

from lora_lab.common.errors import InputError
from lora_lab.study.settings import ModelSettings
from lora_lab.training.base.loading import architecture, load_base, locate, resolve_dtype


@pytest.fixture
def folder(tiny_base, tmp_path):
    """A copy of the base to do harm to."""
    return shutil.copytree(tiny_base, tmp_path / "base")


def settings(folder, **fields) -> ModelSettings:
    return ModelSettings(model_name_or_path=str(folder), **fields)


def refusal(folder, **fields) -> str:
    with pytest.raises(InputError) as raised:
        load_base(settings(folder, **fields), CPU)
    message = str(raised.value)
    assert "\n" not in message
    assert ";" in message, "no way out"
    return message


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


# What is loaded


def test_a_base_is_frozen_and_in_evaluation_mode(tiny_base):
    base = load_base(settings(tiny_base, dtype="float32"), CPU)
    parameters = list(base.model.parameters())
    assert parameters
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not base.model.training
    assert base.location == str(tiny_base)
    assert not base.fan_in_fan_out
    assert base.linears.head == "lm_head"
    assert base.linears.num_layers == 2
    assert base.tokenizer("w1 w2")["input_ids"] == [1, 2]


def test_the_config_alone_gives_the_same_architecture(tiny_base):
    assert architecture(settings(tiny_base)) == load_base(settings(tiny_base), CPU).linears


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_weights_have_the_dtype_that_was_asked_for(tiny_base, dtype):
    base = load_base(settings(tiny_base, dtype=dtype), CPU)
    assert base.dtype == getattr(torch, dtype)
    assert {parameter.dtype for parameter in base.model.parameters()} == {base.dtype}


def test_auto_is_float32_on_a_cpu_whatever_the_files_have(tiny_base):
    assert resolve_dtype(settings(tiny_base), CPU) == torch.float32
    base = load_base(settings(tiny_base), CPU)
    assert {parameter.dtype for parameter in base.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bfloat16_only_where_a_gpu_computes_in_it(tiny_base, monkeypatch, has):
    """V100 and T4 emulate it, slowly, and say that they support it unless asked without emulation."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has or including_emulation)
    found = resolve_dtype(settings(tiny_base), torch.device("cuda"))
    assert found == (torch.bfloat16 if has else torch.float32)


# What is refused


def test_a_folder_without_a_config(folder):
    (folder / "config.json").unlink()
    assert "has no config.json; save it with save_pretrained" in refusal(folder)


def test_a_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    assert "has no weights; convert it" in refusal(folder)


class Canary:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_pickle_is_refused_and_not_opened(folder, name):
    (folder / "model.safetensors").unlink()
    torch.save(Canary(folder / "canary"), folder / name)
    message = refusal(folder)
    assert f"only {name}, a pickle, which can run code" in message
    assert "save_pretrained" in message
    assert not (folder / "canary").exists()


def test_a_pickle_beside_other_safetensors_is_not_opened(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    torch.save(Canary(folder / "canary"), folder / "pytorch_model.bin")
    assert "no file named model.safetensors" in refusal(folder)
    assert not (folder / "canary").exists()


def write_code(folder, canary, config_changes):
    """A model with code of its own that leaves a trace when it is imported."""
    (folder / "evil.py").write_text(
        f"open({str(canary)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class EvilConfig(LlamaConfig):\n    model_type = 'evil'\n"
        "class Evil(LlamaForCausalLM):\n    config_class = EvilConfig\n"
        "class EvilTokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    edit_json(folder / "config.json", **config_changes)


AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"}


@pytest.mark.parametrize("read", [lambda s: load_base(s, CPU), architecture], ids=["load_base", "architecture"])
def test_code_of_a_model_is_never_run_even_if_the_terminal_would_say_yes(folder, monkeypatch, read):
    """Without an explicit trust_remote_code, transformers asks on the terminal."""
    write_code(folder, folder / "canary", {"model_type": "evil", "auto_map": AUTO_MAP})
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 10))
    with pytest.raises(InputError, match="brings code of its own, which is never run; use a model") as raised:
        read(settings(folder))
    assert "\n" not in str(raised.value)
    assert not (folder / "canary").exists()


def test_code_beside_a_known_architecture_is_passed_over(folder):
    write_code(folder, folder / "canary", {"auto_map": AUTO_MAP})
    edit_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]})
    base = load_base(settings(folder), CPU)
    assert type(base.model).__module__.startswith("transformers.")
    assert not (folder / "canary").exists()


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none/at/all", "a/b/c", "../x"])
def test_a_path_that_does_not_exist(name):
    assert f"{name} is not a folder; give a folder with config.json" in refusal(name)


def test_a_file_is_not_a_folder(tiny_base):
    assert "is not a folder" in refusal(tiny_base / "config.json")


@pytest.mark.parametrize("name", ["owner/name", "name", "not a name", "nul\0"])
def test_a_hub_model_that_cannot_be_reached(name):
    assert "nor a Hub model that can be reached" in refusal(name)
    assert locate(settings(name)) == name


def test_an_unknown_builtin_model():
    assert "no built-in model 'builtin/none'" in refusal("builtin/none")


def test_an_adapter_is_not_a_base(folder):
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere", "peft_type": "LORA"}')
    (folder / "adapter_model.safetensors").touch()
    assert "is a LoRA adapter" in refusal(folder)
    assert "merge_and_unload" in refusal(folder)


def test_an_adapter_beside_a_base_is_not_silently_loaded_with_it(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/somewhere", "peft_type": "LORA"}')
    assert "is a LoRA adapter" in refusal(folder)


def test_missing_weights_are_not_filled_with_random_numbers(folder):
    edit_json(folder / "config.json", num_hidden_layers=3)
    message = refusal(folder)
    assert "lacks 9 weights that its config.json asks for" in message
    assert "model.layers.2." in message


def test_weights_of_another_shape(folder):
    edit_json(folder / "config.json", intermediate_size=80)
    assert "in another shape (first: model.layers.0.mlp.down_proj.weight)" in refusal(folder)


@pytest.mark.parametrize("kept", [0, 4, 100, 5000])
def test_truncated_weights(folder, kept):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    assert "is neither a usable model folder" in refusal(folder)


def test_a_relative_path_to_nothing_is_told_with_the_place_it_is_seen_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refusal("bases/my-model")  # which might be a Hub id too
    assert f"bases/my-model is neither a usable model folder (seen from {tmp_path}) nor a Hub model" in message
    assert "internet connection" not in message


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"", b"\xff", b"{}"])
def test_damaged_json(folder, name, content):
    (folder / name).write_bytes(content)
    assert "is neither a usable model folder" in refusal(folder)


def test_a_config_value_of_the_wrong_type(folder):
    edit_json(folder / "config.json", hidden_size="thirty-two")
    assert "hidden_size" in refusal(folder)


def test_a_model_that_is_no_language_model(folder):
    (folder / "config.json").write_text('{"model_type": "vit"}')
    assert "ViTConfig is not the config of a causal language model" in refusal(folder)
    with pytest.raises(InputError, match=r"ViTConfig is not the config of a causal language model .*; give") as raised:
        architecture(settings(folder))
    assert "\n" not in str(raised.value)
