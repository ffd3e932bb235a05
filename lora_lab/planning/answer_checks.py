"""Whether held-out rows have the answers that a study's metrics compare with, found before a base is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.data.examples import Text
from lora_lab.data.sources import load_splits
from lora_lab.study.measures import MEASURES

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.study.spec import StudySpec


def check_answers(spec: StudySpec, cache_folder: Path) -> None:
    """See that every held-out row has an answer, where a metric compares with it.

    Args:
        spec: The study.
        cache_folder: For generated and converted datasets.

    Raises:
        InputError: a row has none, by file and line; or the data cannot be read (`load_splits`).
    """
    if not spec.evaluation.asks:
        return
    names = [name for name in spec.evaluation.metrics if MEASURES[name].source == "answers"]
    for example in load_splits(spec.data, cache_folder).eval.examples:
        if isinstance(example, Text):
            raise InputError(
                f"evaluation.metrics: {', '.join(names)} compares answers with references, but {example.place} is a "
                "text without an answer; give data.eval rows of prompt and completion, of messages or of alpaca"
            )
