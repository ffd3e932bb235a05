"""The token sets that trials train and are measured on, tokenized once per distinct data settings."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lora_lab.common.activity import unwatched
from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadRows
from lora_lab.data.blocks import pack_examples
from lora_lab.data.labeled import tokenize_labeled
from lora_lab.data.sources import load_splits
from lora_lab.data.tokens import TokenizedDataset, tokenize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from lora_lab.common.activity import Beat
    from lora_lab.data.sources import LoadedExamples
    from lora_lab.study.data_settings import DataSettings, Purpose

FEWEST_EVALUATED = 2
"""Evaluation rows: one has no spread, so that no difference of two trials could be tested."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where examples came from."""

    name: str
    """Path or Hub id, and split."""
    digest: str
    """The sha256 of the examples' content."""


@dataclass(frozen=True, slots=True)
class TokenizedSplits:
    """Training, evaluation and (where asked for) forgetting and test examples as tokens."""

    train: TokenizedDataset
    eval: TokenizedDataset
    forgetting: TokenizedDataset | None
    sources: Mapping[Purpose, Source]
    notes: tuple[str, ...]
    """What the user should know: rows cut, duplicates between train and eval, ..."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """The content hash of each source as it was read, by its key and name."""
    test: TokenizedDataset | None = None

    @property
    def sets(self) -> list[TokenizedDataset]:
        """All that there are."""
        return [tokens for tokens in (self.train, self.eval, self.test, self.forgetting) if tokens is not None]


class DataCatalog:
    """Loads and tokenizes data on first use.

    Args:
        tokenizer: Of the base.
        cache_folder: For generated and converted datasets.
        vocabulary: Rows of the base's input embedding, which every token must be below; None checks nothing.
        beat: Called before each batch of rows that is tokenized.
        classes: What rows may be, where trials learn that (`model.labels`); None where they learn text.
    """

    def __init__(
        self,
        tokenizer: Any,
        cache_folder: Path,
        vocabulary: int | None = None,
        beat: Beat = unwatched,
        classes: Sequence[str] | None = None,
    ) -> None:
        self._tokenizer, self._beat = tokenizer, beat
        self._vocabulary, self._classes = vocabulary, classes
        self._cache_folder = cache_folder
        self._splits: dict[DataSettings, TokenizedSplits] = {}
        self._contents: dict[str, str] = {}

    def splits(self, data: DataSettings) -> TokenizedSplits:
        """The token sets for these settings.

        Raises:
            InputError: a source or row that cannot be right, by file and line; a single evaluation row; or a source
                that was changed since it was first read, so that trials on it would not compare.
        """
        if data not in self._splits:
            loaded = self._load(data)
            self._check(loaded)
            self._contents.update(loaded.contents)
            self._splits[data] = loaded
        return self._splits[data]

    def _check(self, loaded: TokenizedSplits) -> None:
        if len(loaded.eval) < FEWEST_EVALUATED:
            raise InputError(
                f"data.eval: must leave at least {FEWEST_EVALUATED} rows to be measured on, since a verdict tests "
                f"differences over them, but {loaded.sources['eval'].name} has {len(loaded.eval)}; give more rows"
            )
        for tokens in loaded.sets:
            self._check_vocabulary(tokens)
        for source, digest in loaded.contents.items():
            if self._contents.get(source, digest) != digest:
                raise InputError(f"{source} was changed while the study runs; put back what was there, and run again")

    def _check_vocabulary(self, tokens: TokenizedDataset) -> None:
        """Beyond the embedding's end a CPU raises an IndexError, and a CUDA device is lost to the process."""
        if self._vocabulary is None:
            return
        highest = max((int(row.max()) for row in tokens.input_ids if len(row)), default=0)
        if highest >= self._vocabulary:
            token = self._tokenizer.convert_ids_to_tokens(highest)
            raise InputError(
                f"model.model_name_or_path: the tokenizer gives the data's token {token!r} the id {highest}, but the "
                f"base's embedding has rows for ids below {self._vocabulary} only; give the tokenizer that the base "
                "was trained with, or save the base after model.resize_token_embeddings(len(tokenizer))"
            )

    def _load(self, data: DataSettings) -> TokenizedSplits:
        bad = BadRows(data.skip_invalid)
        loaded, notes = bad.settle_after(lambda: self._tokenized(data, bad))
        return replace(loaded, notes=(*loaded.notes, *notes))

    def _tokenized(self, data: DataSettings, bad: BadRows) -> TokenizedSplits:
        splits = load_splits(data, self._cache_folder, bad=bad, classes=self._classes)

        def tokens(loaded: LoadedExamples, *, with_questions: bool = False) -> TokenizedDataset:
            if self._classes is not None:
                return tokenize_labeled(
                    loaded,
                    self._tokenizer,
                    data.max_length,
                    self._classes,
                    with_questions=with_questions,
                    beat=self._beat,
                )
            return tokenize(
                loaded, self._tokenizer, data.max_length, bad=bad, with_questions=with_questions, beat=self._beat
            )

        train, evaluation = tokens(splits.train), tokens(splits.eval, with_questions=True)
        test = tokens(splits.test, with_questions=True) if splits.test else None
        forgetting = tokens(splits.forgetting) if splits.forgetting else None
        if data.packing and len(train):
            train = pack_examples(train, data.max_length)
        named: dict[Purpose, LoadedExamples | None] = {
            "train": splits.train,
            "eval": splits.eval,
            "test": splits.test,
            "forgetting": splits.forgetting,
        }
        sources = {purpose: _source(loaded) for purpose, loaded in named.items() if loaded is not None}
        made = TokenizedSplits(train, evaluation, forgetting, sources, (), splits.contents, test)
        notes = (*splits.notes, *(note for one in made.sets for note in one.notes))
        return replace(made, notes=tuple(dict.fromkeys(notes)))


def _source(loaded: LoadedExamples) -> Source:
    return Source(loaded.source, loaded.content_hash)
