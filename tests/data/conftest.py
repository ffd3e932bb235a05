"""A byte-level tokenizer of 300 tokens, made on the spot, and a writer of JSONL files."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def build_tokenizer(
    chat_template: str | None = None, *, adds_bos: bool = False, adds_eos: bool = False, has_eos: bool = True
):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat sat on the mat and the dog sat on the cat", "Paris is in France"], trainer)
    if adds_bos or adds_eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=("<s> " if adds_bos else "") + "$A" + (" </s>" if adds_eos else ""),
            special_tokens=[("<s>", 0), ("</s>", 1)],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>" if has_eos else None,
        chat_template=chat_template,
        additional_special_tokens=SPECIALS[2:],
        model_max_length=64,
    )


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture
def make_tokenizer():
    return build_tokenizer


@pytest.fixture
def write_jsonl(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def cache(tmp_path):
    """Where generated and converted datasets are kept."""
    return tmp_path / "cache"
