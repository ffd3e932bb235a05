"""Whether rows have what a study needs beside text, found before a base is loaded: answers to compare with, classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.data.examples import Text
from lora_lab.data.sources import load_splits
from lora_lab.study.measures import MEASURES

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.study.spec import StudySpec


def with_classes(spec: StudySpec, cache_folder: Path) -> StudySpec:
    """The study with its classes (`model.labels`), which are those of its training rows where it does not name them.

    Args:
        spec: The study; one that learns text is given back as it is.
        cache_folder: For generated and converted datasets.

    Raises:
        InputError: a row has no class, or one that no training row has, by file and line; there is only one class.
    """
    if not spec.model.classifies:
        return spec
    return spec.with_labels(load_splits(spec.data, cache_folder, classes=spec.model.labels or ()).classes)


def check_answers(spec: StudySpec, cache_folder: Path) -> None:
    """See that every held-out row has an answer, where a metric compares with it.

    Args:
        spec: The study.
        cache_folder: For generated and converted datasets.

    Raises:
        InputError: a row has none, by file and line; or the data cannot be read (`load_splits`).
    """
    if not spec.evaluation.asks or spec.model.classifies:
        return
    names = [name for name in spec.evaluation.metrics if MEASURES[name].source == "answers"]
    for example in load_splits(spec.data, cache_folder).eval.examples:
        if isinstance(example, Text):
            raise InputError(
                f"evaluation.metrics: {', '.join(names)} compares answers with references, but {example.place} is a "
                "text without an answer; give data.eval rows of prompt and completion, of messages or of alpaca"
            )
