"""What a base is, as digests: equal for the same files, another one for every change that a trial would feel."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from workshop import CPU

from lora_lab.study.settings import ModelSettings
from lora_lab.training.base.contents import base_contents
from lora_lab.training.base.loading import load_base


@pytest.fixture
def folder(tiny_base, tmp_path):
    return shutil.copytree(tiny_base, tmp_path / "base")


def contents(folder, **fields) -> dict[str, str]:
    """By weights, tokenizer and chat template, whatever the folder is called."""
    settings = ModelSettings(model_name_or_path=str(folder), **fields)
    return {what.split(" of ")[0]: digest for what, digest in base_contents(load_base(settings, CPU), settings).items()}


def rewrite(path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def changed(folder, before) -> set[str]:
    after = contents(folder)
    return {what for what in before if after[what] != before[what]}


def test_a_copy_in_another_dtype_or_quantized_is_the_same_base(folder, tiny_base):
    assert contents(folder, dtype="float32") == contents(tiny_base) == contents(tiny_base, quantization="nf4")


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.self_attn.q_proj.weight", "lm_head.weight"])
def test_another_value_in_any_tensor_is_another_base(folder, name, place):
    before = contents(folder)

    def change(tensors) -> None:
        tensors[name].view(-1)[place] += 1

    rewrite(folder / "model.safetensors", change)
    assert changed(folder, before) == {"the weights"}


def test_shards_are_read_one_by_one(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"one.safetensors": sorted(tensors)[:5], "two.safetensors": sorted(tensors)[5:]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    before = contents(folder)
    (folder / "three.safetensors").write_bytes(b"no part of the base")
    assert not changed(folder, before)
    rewrite(folder / "two.safetensors", lambda tensors: tensors[min(tensors)].add_(1))
    assert changed(folder, before) == {"the weights"}


def test_another_word_or_end_is_another_tokenizer(folder):
    before = contents(folder)
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"w5"', '"v5"'))
    assert changed(folder, before) == {"the tokenizer"}
    assert changed(folder, contents(folder)) == set()


def test_another_template_is_another_template(folder):
    before = contents(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert changed(folder, before) == {"the chat template"}
