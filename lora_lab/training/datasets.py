"""The token sets that trials train and are measured on, tokenized once per distinct data settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from lora_lab.data.bad_rows import BadRows
from lora_lab.data.blocks import pack_examples
from lora_lab.data.sources import load_splits
from lora_lab.data.tokens import TokenizedDataset, tokenize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_lab.data.sources import LoadedExamples
    from lora_lab.study.settings import DataSettings, Purpose


@dataclass(frozen=True, slots=True)
class Source:
    """Where examples came from."""

    name: str
    """Path or Hub id, and split."""
    digest: str
    """The sha256 of the examples' content."""


@dataclass(frozen=True, slots=True)
class TokenizedSplits:
    """Training, evaluation and (where asked for) forgetting examples as tokens."""

    train: TokenizedDataset
    eval: TokenizedDataset
    forgetting: TokenizedDataset | None
    sources: Mapping[Purpose, Source]
    notes: tuple[str, ...]
    """What the user should know: rows cut, duplicates between train and eval, ..."""


class DataCatalog:
    """Loads and tokenizes data on first use."""

    def __init__(self, tokenizer: Any, cache_folder: Path) -> None:
        self._tokenizer = tokenizer
        self._cache_folder = cache_folder
        self._splits: dict[DataSettings, TokenizedSplits] = {}

    def splits(self, data: DataSettings) -> TokenizedSplits:
        """The token sets for these settings.

        Raises:
            InputError: a source or row that cannot be right, by file and line.
        """
        if data not in self._splits:
            self._splits[data] = self._load(data)
        return self._splits[data]

    def _load(self, data: DataSettings) -> TokenizedSplits:
        bad = BadRows(data.skip_invalid)
        loaded, notes = bad.settle_after(lambda: self._tokenized(data, bad))
        return replace(loaded, notes=(*loaded.notes, *notes))

    def _tokenized(self, data: DataSettings, bad: BadRows) -> TokenizedSplits:
        splits = load_splits(data, self._cache_folder, bad=bad)

        def tokens(loaded: LoadedExamples) -> TokenizedDataset:
            return tokenize(loaded, self._tokenizer, data.max_length, bad=bad)

        train, evaluation = tokens(splits.train), tokens(splits.eval)
        forgetting = tokens(splits.forgetting) if splits.forgetting else None
        if data.packing and len(train):
            train = pack_examples(train, data.max_length)
        sources: dict[Purpose, Source] = {
            "train": _source(splits.train),
            "eval": _source(splits.eval),
        }
        if splits.forgetting:
            sources["forgetting"] = _source(splits.forgetting)
        notes = (*splits.notes, *train.notes, *evaluation.notes, *(forgetting.notes if forgetting else ()))
        return TokenizedSplits(train, evaluation, forgetting, sources, tuple(dict.fromkeys(notes)))


def _source(loaded: LoadedExamples) -> Source:
    return Source(loaded.source, loaded.content_hash)
