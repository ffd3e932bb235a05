"""What a base is, as digests: whether a study that goes on has the base that its trials were trained on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lora_lab.study.settings import ModelSettings
    from lora_lab.training.base.loading import Base

SAMPLE_BYTES = 4096
"""Read at the beginning, the middle and the end of every tensor: training changes all of a tensor, and to read all of
a large base would take minutes."""
PROBE = "Hello, World!  x = [1, 20, 300]\n\tdéjà vu - 你好 \U0001f600 <s></s> don't\r\n"
"""A text whose tokens show how a tokenizer treats case, spaces, digits, accents, other scripts and special tokens."""


def base_contents(base: Base, settings: ModelSettings) -> dict[str, str]:
    """The digests of a base's weights, tokenizer and chat template, by what they are."""
    name = settings.model_name_or_path
    template = getattr(base.tokenizer, "chat_template", None)
    return {
        f"the weights of {name}": _weights(base.location, settings.revision),
        f"the tokenizer of {name}": _tokenizer(base.tokenizer),
        f"the chat template of {name}": hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest(),
    }


def _tokenizer(tokenizer: Any) -> str:
    """By its vocabulary and what it does, and not by its files, which versions of transformers write differently."""
    described = [sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer(PROBE)["input_ids"]]
    return hashlib.sha256(json.dumps(described, default=str).encode()).hexdigest()


def _weights(location: str, revision: str | None) -> str:
    """By the names, shapes and places of all tensors, and a sample of the values of each."""
    digest = hashlib.sha256()
    for path in _weight_files(location, revision):
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            digest.update(header)
            for start, end in _spans(json.loads(header)):
                for place in (start, (start + end) // 2, max(start, end - SAMPLE_BYTES)):
                    file.seek(8 + len(header) + place)
                    digest.update(file.read(min(SAMPLE_BYTES, end - place)))
    return digest.hexdigest()


def _spans(header: dict[str, Any]) -> Iterator[tuple[int, int]]:
    """Where each tensor begins and ends behind the header of a safetensors file."""
    for name, tensor in sorted(header.items()):
        if name != "__metadata__":
            yield tuple(tensor["data_offsets"])


def _weight_files(location: str, revision: str | None) -> list[Path]:
    """The safetensors files that `from_pretrained` loaded."""

    def found(name: str) -> Path | None:
        path = cached_file(location, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        return None if path is None else Path(path)

    whole = found(SAFE_WEIGHTS_NAME)
    index = None if whole else found(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return [whole] if whole else []
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [path for shard in shards if (path := found(shard)) is not None]
