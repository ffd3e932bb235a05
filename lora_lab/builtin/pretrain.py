"""Pretrain the built-in base model: `python -m lora_lab.builtin.pretrain --output FOLDER [--steps N]`.

Runs once, on one CPU thread, in about a quarter of an hour; its output is committed as the folder
`tiny-llama` beside this file.  The same Python and PyTorch give the same weights again.
"""

# ruff: noqa: S311 (synthetic text and data order, not secrets)

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_lab.builtin import model_card, pretraining_text

if TYPE_CHECKING:
    from collections.abc import Iterator

LENGTH = 128
"""Tokens in a training window."""
BATCH = 8
"""Windows in a step."""
PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100
DECAY_FRACTION = 0.4
"""Over this last part of the steps the learning rate falls linearly to 2% (warm-up, stable, decay)."""
BIOGRAPHIES = 14_000
TOKENIZER_BIOGRAPHIES = 3_000
"""More of them would fill the vocabulary with pieces of invented names."""
VALIDATION_WINDOWS = 192
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")
PAD, BOS, EOS = 0, 1, 2

logger = logging.getLogger(__name__)


def main() -> None:
    """Make the tokenizer and the weights, and write them with their measurements and card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--steps", type=int, default=4500, help="optimizer steps (default: %(default)s)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # with one thread the sums have one order, and the weights are reproducible
    pretrain(arguments.output, arguments.steps)


def pretrain(output: Path, steps: int) -> None:
    """Train the tokenizer and the model from scratch and write both to `output`."""
    prose = pretraining_text.pretraining_prose()
    biographies = pretraining_text.pretraining_biographies(BIOGRAPHIES)
    tokenizer = train_tokenizer(prose + biographies[:TOKENIZER_BIOGRAPHIES])
    documents = {"prose": encode(tokenizer, prose), "biographies": encode(tokenizer, biographies)}
    tokens = {name: sum(map(len, encoded)) for name, encoded in documents.items()}
    logger.info("tokens to train on: %s", tokens)
    batches = training_windows(documents["prose"] + documents["biographies"], steps * BATCH)
    validation = validation_windows(tokenizer)
    torch.manual_seed(0)
    model = LlamaForCausalLM(model_config())
    start = time.monotonic()
    for step in train(model, batches):
        if step % 250 == 0 or step == steps:
            logger.info("step %d, %.0f s: %s", step, time.monotonic() - start, evaluate(model, validation))
    save(model, tokenizer, output)
    saved = LlamaForCausalLM.from_pretrained(output, dtype=torch.float32)
    report = {
        "parameters": model.num_parameters(),
        "steps": steps,
        "tokens_per_step": BATCH * LENGTH,
        "training_tokens": tokens,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - start),
        "cross_entropy_nats": evaluate(saved, validation),
        "unigram_nats": unigram_cross_entropy(batches, validation),
    }
    (output / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    model_card.write_card(output)


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A byte-level BPE of 1024 tokens that adds no token by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def model_config() -> LlamaConfig:
    """A Llama of 1.8 M parameters, small enough to be committed and to be fine-tuned on a CPU in seconds."""
    return LlamaConfig(
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """The token ids of each text, with an end-of-text token."""
    return [[*encoding.ids, EOS] for encoding in tokenizer.encode_batch(texts)]


def training_windows(documents: list[list[int]], count: int) -> torch.Tensor:
    """`count` windows of `LENGTH` tokens: passes over the documents, each in a new order."""
    generator = random.Random(0)
    passes: list[torch.Tensor] = []
    while sum(map(len, passes)) < count:
        generator.shuffle(documents)
        windows = cut(documents)
        order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(len(passes)))
        passes.append(windows[order])
    return torch.cat(passes)[:count]


def cut(documents: list[list[int]]) -> torch.Tensor:
    """The documents one after another in windows of `LENGTH` tokens; shape (windows, LENGTH)."""
    stream = torch.tensor([token for document in documents for token in document])
    count = len(stream) // LENGTH
    return stream[: count * LENGTH].view(count, LENGTH)


def validation_windows(tokenizer: Tokenizer) -> dict[str, torch.Tensor]:
    """Evenly spread windows of held-out prose, of biographies of unseen people, and of code."""
    texts = {
        "prose": pretraining_text.validation_prose(),
        "biographies": pretraining_text.validation_biographies(500),
        "code": pretraining_text.validation_code(),
    }
    spread = {}
    for name, passages in texts.items():
        windows = cut(encode(tokenizer, passages))
        spread[name] = windows[torch.linspace(0, len(windows) - 1, VALIDATION_WINDOWS).long()]
    return spread


def train(model: LlamaForCausalLM, windows: torch.Tensor) -> Iterator[int]:
    """Train on the windows in order and yield the number of steps done after each."""
    steps = len(windows) // BATCH
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    gains = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    for step, batch in enumerate(windows.view(steps, BATCH, LENGTH)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        model.train()
        model(input_ids=batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield step + 1


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, a constant part, and a linear decay to 2%."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    decay = min(1.0, max(0.02, (steps - step) / (DECAY_FRACTION * steps)))
    return PEAK_LEARNING_RATE * warm_up * decay


@torch.no_grad()
def evaluate(model: Any, validation: dict[str, torch.Tensor]) -> dict[str, float]:
    """Mean cross-entropy in nats per token, for each kind of text."""
    model.eval()
    losses = {}
    for name, windows in validation.items():
        batches = windows.view(-1, 16, LENGTH)
        total = math.fsum(model(input_ids=batch, labels=batch).loss.item() for batch in batches)
        losses[name] = round(total / len(batches), 4)
    return losses


def unigram_cross_entropy(trained_on: torch.Tensor, validation: dict[str, torch.Tensor]) -> dict[str, float]:
    """What a model that knows only the token frequencies of the training text reaches, in nats per token."""
    counts = torch.bincount(trained_on.flatten(), minlength=1024) + 0.5
    log_frequency = (counts / counts.sum()).log()
    return {name: round(-log_frequency[windows].mean().item(), 4) for name, windows in validation.items()}


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, output: Path) -> None:
    """Write fp16 safetensors, configuration and tokenizer."""
    model.generation_config = GenerationConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=EOS)
    model.half().save_pretrained(output)
    pad, bos, eos = SPECIAL_TOKENS
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(output)
    name_tokenizer_class(output / "tokenizer_config.json")
    (output / "model.safetensors").chmod(0o644)  # safetensors writes 0600


def name_tokenizer_class(path: Path) -> None:
    """Write the tokenizer class's old name, which Transformers 4 and 5 both know."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
