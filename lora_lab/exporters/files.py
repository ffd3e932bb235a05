"""The files of an export: settings as YAML, tokens and rows as JSON lines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import yaml

from lora_lab.data.examples import Completion, Conversation, Labeled, Text
from lora_lab.data.tokens import IGNORED
from lora_lab.exporters.targets import package

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from lora_lab.data.examples import Example
    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.exporters.targets import TargetName
    from lora_lab.exporters.trial import ExportedTrial, Specials

SPLITS = ("train", "validation")


def heading(trial: ExportedTrial, target: TargetName) -> str:
    """The first line of every file: what it is, and for which version."""
    return f"Made by lora_lab for {package(target)}: {trial.title}."


def write_yaml(path: Path, trial: ExportedTrial, target: TargetName, settings: Mapping[str, Any]) -> None:
    """Write a settings file with its heading as a comment."""
    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True, width=100)
    path.write_text(f"# {heading(trial, target)}\n{text}", encoding="utf-8")


def write_tokens(folder: Path, trial: ExportedTrial, *, packed: bool = False) -> None:
    """Write `tokens/train.jsonl` and `tokens/validation.jsonl`: `input_ids`, `attention_mask`, `labels`.

    A label of -100 is not learned; so is every first one, which nothing stands before.

    Args:
        folder: The export folder.
        trial: Whose tokens.
        packed: Keep several examples in a training row, with `position_ids`, where the trial packs them.
    """
    tokens = trial.tokens if packed else trial.unpacked_tokens
    for name, dataset in zip(SPLITS, (tokens.train, tokens.eval), strict=True):
        write_lines(folder / "tokens" / f"{name}.jsonl", token_rows(dataset))


def token_rows(dataset: TokenizedDataset) -> Iterator[dict[str, Any]]:
    """The rows of a token set as trainers read them; of classes, `label` is the index."""
    for index, (ids, labels) in enumerate(zip(dataset.input_ids, dataset.labels, strict=True)):
        row: dict[str, Any] = {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids)}
        if dataset.classes is not None:
            row["label"] = int(dataset.classes[index])
        else:
            row["labels"] = [IGNORED, *labels[1:].tolist()]
        if dataset.token_types is not None:
            row["token_type_ids"] = dataset.token_types[index].tolist()
        if dataset.positions is not None:
            row["position_ids"] = dataset.positions[index].tolist()
        yield row


def write_rows(folder: Path, rows: Sequence[Iterator[dict[str, Any]]]) -> None:
    """Write `rows/train.jsonl` and `rows/validation.jsonl`."""
    for name, lines in zip(SPLITS, rows, strict=True):
        write_lines(folder / "rows" / f"{name}.jsonl", lines)


def plain_rows(examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
    """Examples as rows of `text`, of `prompt` and `completion`, or of `messages`."""
    for example in examples:
        match example:
            case Text():
                yield {"text": example.text}
            case Completion():
                yield {"prompt": example.prompt, "completion": example.completion}
            case Conversation():
                tools = {"tools": list(example.tools)} if example.tools else {}
                yield {"messages": [dict(message) for message in example.messages], **tools}
            case Labeled():
                raise AssertionError("rows with classes are handed over as tokens")


def segment_rows(examples: Sequence[Example], specials: Specials) -> Iterator[dict[str, Any]]:
    """Texts, prompts and completions as `segments`, of which those with `label` are learned."""
    for example in examples:
        match example:
            case Text():
                yield {"segments": [{"label": True, "text": specials.before + example.text + specials.after}]}
            case Completion():
                given = {"label": False, "text": specials.before + example.prompt}
                yield {"segments": [given, {"label": True, "text": example.completion + specials.after}]}
            case _:
                raise AssertionError("conversations are rows of messages, and rows with classes are tokens")


def closed_rows(examples: Sequence[Example], specials: Specials) -> Iterator[dict[str, Any]]:
    """Texts, prompts and completions with their beginning and end written out."""
    for example in examples:
        match example:
            case Text():
                yield {"text": specials.before + example.text + specials.after}
            case Completion():
                yield {"prompt": specials.before + example.prompt, "completion": example.completion + specials.after}
            case _:
                raise AssertionError("conversations are rows of messages, and rows with classes are tokens")


def turn_rows(examples: Sequence[Example], specials: Specials) -> Iterator[dict[str, Any]]:
    """Texts, prompts and completions as `messages` that are written one after another with nothing between them."""
    for row in closed_rows(examples, specials):
        given = [{"role": "user", "content": row["prompt"]}] if "prompt" in row else []
        yield {"messages": [*given, {"role": "assistant", "content": row.get("completion", row.get("text"))}]}


def write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    """Write rows as JSON lines; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
