"""The model card of the built-in base, written from its measurements."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lora_lab.builtin.standard_library import CODE_VALIDATION_FILES, PROSE_VALIDATION_FILES

if TYPE_CHECKING:
    from pathlib import Path

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [llama, tiny, demo]
---

# tiny-llama

A Llama of {parameters:,} parameters that comes with `lora_lab`, so that its demo, tests and benchmarks run
without a network and without a GPU. It is a real, if very small, language model: adapters learn on it,
overfit on it, and make it forget, at the speed of a few fine-tuning steps per second on one CPU thread. It
is of no use for anything else.

## Architecture
`LlamaForCausalLM`: hidden size 192, MLP 512, 4 layers, 6 heads, 2 key/value heads of 32, tied embeddings,
512 positions. The tokenizer is a byte-level BPE of 1024 tokens; `<pad>`, `<bos>`, `<eos>` are tokens 0, 1,
2, and none is added by itself. In pretraining every text ended with `<eos>`, and none began with `<bos>`.
Weights are fp16 safetensors; load them as fp32 on a CPU: `AutoModelForCausalLM.from_pretrained(folder,
dtype=torch.float32)`.

## Training
Made once by `python -m lora_lab.builtin.pretrain` (Python {python}, PyTorch {torch}, one thread, {minutes:.0f}
minutes): {steps:,} steps of {tokens_per_step:,} tokens with AdamW at 3e-3, warm-up, a constant part and a
linear decay over the last 40%. The text:

- {prose_tokens:,} tokens of docstrings, comments and help topics of the Python standard library. They were
  read from an installed Python for training and are not part of this repository (Python's licence, PSF-2.0,
  applies to them).
- {biography_tokens:,} tokens of synthetic biographies (`lora_lab/builtin/people.py`), with records, questions
  and answers.

Library code was not trained on, only the examples that stand in its documentation. Weights, tokenizer
and synthetic text are under Apache-2.0.

## Measured
Cross-entropy in nats per token on held-out text, against a model that knows only token frequencies:

| text | this model | unigram |
|---|---|---|
{rows}

Held out: {prose_files} library files (prose), people who occur nowhere else (biographies), {code_files}
library files (code).

## Limits
- Key and value projections are 64 wide, the hidden state 192, the MLP 512. An adapter of rank 64 is full
  rank on the key and value projections, and rank 256 is more than full on all attention projections: the
  upper end of a rank sweep shows more parameters there, not a higher-rank update.
- It has read library documentation and invented biographies. Its sentences are fluent at best, and never
  informed.
- Text of the kinds above may reappear in its output; nothing in the training data concerns a real person by
  design, though docstrings and comments may name authors.
"""


def write_card(folder: Path) -> None:
    """Write `README.md` from the figures in `pretraining.json`."""
    report = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))
    rows = [
        f"| {name} | {loss:.2f} | {report['unigram_nats'][name]:.2f} |"
        for name, loss in report["cross_entropy_nats"].items()
    ]
    card = _CARD.format(
        **report,
        minutes=report["seconds"] / 60,
        prose_tokens=report["training_tokens"]["prose"],
        biography_tokens=report["training_tokens"]["biographies"],
        rows="\n".join(rows),
        prose_files=len(PROSE_VALIDATION_FILES),
        code_files=len(CODE_VALIDATION_FILES),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
