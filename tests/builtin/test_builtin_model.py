"""The shipped base: it loads, it is small and safe, and it knows what its card says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_lab.builtin import model_card
from lora_lab.builtin.catalog import BUILTIN_MODELS, model_folder
from lora_lab.builtin.datasets import write_dataset
from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = model_folder("builtin/tiny-llama")
PROSE_GAIN = 2.5
"""Nats per token that held-out prose is below unigram; measured 3.0."""
REPORT = json.loads((FOLDER / "pretraining.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@torch.no_grad()
def cross_entropy(model: Any, tokenizer: Any, dataset: str, folder: Path) -> float:
    lines = write_dataset(dataset, folder)["validation"].read_text(encoding="utf-8").splitlines()
    texts = ["".join(json.loads(line).values()) for line in lines[:48]]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    return float(model(**batch, labels=labels).loss)


def test_sizes_are_those_of_the_design(model: Any) -> None:
    config = model.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (192, 512, 4)
    assert (config.num_attention_heads, config.num_key_value_heads, config.vocab_size) == (6, 2, 1024)
    assert config.tie_word_embeddings
    assert model.num_parameters() == REPORT["parameters"] == 1_771_200
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_files_are_small_and_cannot_run_code() -> None:
    files = list(FOLDER.rglob("*"))
    assert sum(path.stat().st_size for path in files) < 6_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    assert "auto_map" not in (FOLDER / "config.json").read_text(encoding="utf-8")


def test_tokenizer_adds_nothing_and_loses_nothing(tokenizer: Any) -> None:
    text = "def add(a, b):\n    return a + b  # naïve ✓\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert len(tokenizer) == 1024


@pytest.mark.slow
def test_held_out_text_is_far_below_unigram(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    prose = cross_entropy(model, tokenizer, "builtin/stdlib-prose", tmp_path / "prose")
    code = cross_entropy(model, tokenizer, "builtin/stdlib-code", tmp_path / "code")
    assert prose < REPORT["unigram_nats"]["prose"] - PROSE_GAIN
    assert 3.0 < prose < 3.6
    assert 3.0 < code < 3.6


@pytest.mark.parametrize("dataset", ["builtin/facts", "builtin/style"])
def test_a_prompt_is_tokenized_alike_alone_and_before_its_completion(
    tokenizer: Any, tmp_path: Path, dataset: str
) -> None:
    for line in write_dataset(dataset, tmp_path)["train"].read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt, completion = (tokenizer(row[field])["input_ids"] for field in ("prompt", "completion"))
        assert tokenizer(row["prompt"] + row["completion"])["input_ids"] == prompt + completion


def test_facts_are_not_known_yet(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    first = json.loads(write_dataset("builtin/facts", tmp_path)["train"].read_text().splitlines()[0])
    ids = tokenizer(first["prompt"], return_tensors="pt")
    output = model.generate(**ids, max_new_tokens=24, do_sample=False)
    continuation = tokenizer.decode(output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert continuation.startswith(" born in ")
    assert not continuation.startswith(first["completion"])


def test_pretraining_is_far_below_unigram() -> None:
    loss, unigram = REPORT["cross_entropy_nats"], REPORT["unigram_nats"]
    assert loss["biographies"] < 1.0 < 4.5 < unigram["biographies"]
    assert loss["prose"] < unigram["prose"] - PROSE_GAIN


def test_the_card_is_written_from_the_measurements(tmp_path: Path) -> None:
    (tmp_path / "pretraining.json").write_text(json.dumps(REPORT), encoding="utf-8")
    model_card.write_card(tmp_path)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card == (FOLDER / "README.md").read_text(encoding="utf-8")
    assert f"| prose | {REPORT['cross_entropy_nats']['prose']:.2f} |" in card
    assert "license: apache-2.0" in card


def test_an_unknown_model_lists_the_known_ones() -> None:
    assert set(BUILTIN_MODELS) == {"builtin/tiny-llama"}
    with pytest.raises(InputError, match="no built-in model 'builtin/llama'; known are: builtin/tiny-llama"):
        model_folder("builtin/llama")
