"""Tiny bases, tokenizers and rows for sequence classification."""

from __future__ import annotations

import json

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertConfig,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    RobertaConfig,
)
from workshop import VOCABULARY

from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import EvaluationSettings, LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.loading import classes_of, load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.reference_engine import ReferenceEngine

CPU = torch.device("cpu")
PAD, CLS, SEP, UNK = range(4)
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "initializer_range": 0.15,
    "pad_token_id": PAD,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
}
BERT_LIKE = SIZES | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MODERN = {"cls_token_id": CLS, "sep_token_id": SEP, "global_attn_every_n_layers": 2, "local_attention": 16}

CONFIGS = {
    "BERT": (BertConfig(**BERT_LIKE), AutoModel),
    "RoBERTa": (RobertaConfig(**BERT_LIKE), AutoModelForMaskedLM),
    "ModernBERT": (ModernBertConfig(**SIZES, **MODERN), AutoModelForMaskedLM),
    "DistilBERT": (
        DistilBertConfig(
            **{
                name: SIZES[name]
                for name in ("vocab_size", "max_position_embeddings", "initializer_range", "pad_token_id")
            },
            dim=32,
            hidden_dim=64,
            n_layers=2,
            n_heads=4,
            dropout=0.0,
            attention_dropout=0.0,
            seq_classif_dropout=0.0,
        ),
        AutoModelForMaskedLM,
    ),
    "Llama": (LlamaConfig(**SIZES, num_key_value_heads=2), AutoModelForCausalLM),
    "Qwen2": (Qwen2Config(**SIZES, num_key_value_heads=2), AutoModelForCausalLM),
}
"""Each family's config, and what its checkpoints are saved as."""
LABELS = ("cold", "hot", "mild")


def write_tokenizer(folder, *, types: bool = False, pad: bool = True) -> None:
    """Words w4, w5, ... between [CLS] and [SEP]; `types` tells the two texts of a pair apart."""
    words = {"[PAD]": PAD, "[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNK} | {f"w{i}": i for i in range(4, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    second = 1 if types else 0
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] $B:{second} [SEP]:{second}",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"} | ({"pad_token": "[PAD]"} if pad else {})
    inputs = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **names).save_pretrained(folder)


def write_encoder(folder, family: str, dtype=torch.float64) -> None:
    """A checkpoint of random weights without a head for classes, and a tokenizer."""
    config, kind = CONFIGS[family]
    torch.manual_seed(0)
    kind.from_config(config).to(dtype).save_pretrained(folder)
    write_tokenizer(folder, types=family == "BERT")


def write_rows(path, rows: int, seed: int = 0, *, pairs: bool = False) -> None:
    """Rows of 5 to 24 words, of which a quarter are typical of the class."""
    numbers = np.random.default_rng(seed)
    lines = []
    for _ in range(rows):
        label = int(numbers.integers(3))
        words = numbers.integers(4, VOCABULARY, size=int(numbers.integers(5, 25)))
        typical = numbers.random(len(words)) < 0.25
        words[typical] = 4 + label * 3 + numbers.integers(3, size=int(typical.sum()))
        text = [f"w{word}" for word in words]
        texts = {"premise": " ".join(text[:4]), "hypothesis": " ".join(text[4:])} if pairs else {"text": " ".join(text)}
        lines.append(json.dumps(texts | {"label": LABELS[label]}))
    path.write_text("\n".join(lines) + "\n")


def classification_trial(base, train, held_out, *, dtype="float64", lora=None, data=None, metrics=(), **training):
    """The configuration of a trial that learns the three classes."""
    return TrialConfig(
        model=ModelSettings(model_name_or_path=str(base), dtype=dtype, task_type="SEQ_CLS", labels=LABELS),
        data=DataSettings(**{"train": str(train), "eval": str(held_out), "max_length": 32} | (data or {})),
        training=TrainingSettings(**{"per_device_train_batch_size": 4, "learning_rate": 3e-3} | training),
        lora=LoraSettings(**{"r": 4} | (lora or {})),
        evaluation=EvaluationSettings(metrics=tuple(metrics)),
    )


def classification_engine(config: TrialConfig, scratch, folder=None):
    """An engine for trials on the base and classes of this one, and the base."""
    base = load_base(config.model, CPU)
    catalog = DataCatalog(base.tokenizer, scratch / "cache", classes=classes_of(config.model))
    return ReferenceEngine(base, catalog, folder or scratch / "trials"), base
