"""Whether rows have what a study needs beside text, found before a base is loaded: answers, choices, classes."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from itertools import product
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.data.examples import Completion, Text
from lora_lab.data.sources import load_splits
from lora_lab.study.measures import MEASURES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_lab.data.examples import Example
    from lora_lab.study.measures import Source
    from lora_lab.study.spec import StudySpec


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What rows must have for the metrics of one source."""

    is_in: Callable[[Example], bool]
    purpose: str
    lack: str
    rows: str


WANTED: Mapping[Source, _Wanted] = {
    "answers": _Wanted(
        lambda example: not isinstance(example, Text),
        "compares answers with references",
        "is a text without an answer",
        "rows of prompt and completion, of messages or of alpaca",
    ),
    "choices": _Wanted(
        lambda example: isinstance(example, Completion) and bool(example.choices),
        "finds the likeliest of several choices",
        "has none",
        "rows of prompt (or question), choices and answer",
    ),
}


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


def require_packages(spec: StudySpec) -> None:
    """Raise InputError where a package that one of the study's metrics is computed by is not installed."""
    for name in spec.evaluation.metrics:
        package = MEASURES[name].package
        try:
            if package:
                metadata.distribution(package)
        except metadata.PackageNotFoundError:
            raise InputError(
                f"evaluation.metrics: {name} is computed by {package}, which is not installed; "
                "pip install 'lora-lab[metrics]'"
            ) from None


def check_answers(spec: StudySpec, cache_folder: Path) -> None:
    """See that held-out rows have what the study's metrics compare with, and that these can be computed here.

    Args:
        spec: The study.
        cache_folder: For generated and converted datasets.

    Raises:
        InputError: a row has none, by file and line; a package is missing; or the data cannot be read (`load_splits`).
    """
    require_packages(spec)
    asked = {source: spec.evaluation.metrics_of(source, spec.model.task_type) for source in WANTED}
    if not any(asked.values()):
        return
    splits = load_splits(spec.data, cache_folder)
    measured = [("eval", one) for one in splits.eval.examples]
    measured += [("test", one) for one in splits.test.examples] if splits.test else []
    for (key, example), (source, names) in product(measured, asked.items()):
        wanted = WANTED[source]
        if names and not wanted.is_in(example):
            raise InputError(
                f"evaluation.metrics: {', '.join(names)} {wanted.purpose}, but {example.place} {wanted.lack}; "
                f"give data.{key} {wanted.rows}"
            )
