"""One base and its data on disk for all tests of the package, and labs over them."""

from __future__ import annotations

import pytest
import torch
from oracle import ON_CPU, Lab
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from workshop import llama_config, write_base, write_texts

from lora_lab.training.packed.blocks import SETTING


@pytest.fixture(autouse=True, params=["single", pytest.param("merged", marks=pytest.mark.slow)])
def blocks(request, monkeypatch):
    """Every test twice: slot after slot, and slots of one shape as one block."""
    monkeypatch.setenv(SETTING, request.param)
    return request.param


@pytest.fixture(scope="session", autouse=True)
def _norms_in_one_precision():
    """On a GPU, float64 norms that stay in float64.

    transformers' own go through float32, where a difference of 1e-16, which the order of a GPU's sums makes, can flip a
    rounding and become one of 1e-8.
    """
    if ON_CPU:
        yield
        return
    real = LlamaRMSNorm.forward

    def forward(norm, x):
        if x.dtype != torch.float64:
            return real(norm, x)
        return norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LlamaRMSNorm, "forward", forward)
        yield


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory):
    """A small random Llama whose losses are sensitive to every module."""
    folder = tmp_path_factory.mktemp("base")
    deeper = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 4, "max_position_embeddings": 128}
    write_base(folder, llama_config(**deeper))
    return folder


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    """Text of mixed lengths: 24 rows to train on, 10 to measure."""
    folder = tmp_path_factory.mktemp("data")
    write_texts(folder / "train.jsonl", 24)
    write_texts(folder / "validation.jsonl", 10, seed=1)
    return folder


@pytest.fixture
def lab64(base_folder, data_folder, tmp_path):
    return Lab(base_folder, data_folder, tmp_path, "float64")


@pytest.fixture
def lab32(base_folder, data_folder, tmp_path):
    return Lab(base_folder, data_folder, tmp_path, "float32")
