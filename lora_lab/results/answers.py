"""What the finalists and the bare base answered to the same prompts, read from the study's folder."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_lab.common.errors import CheckpointError
from lora_lab.figures.evidence import AnsweredRow, Answers
from lora_lab.study.trial_folder import TrialFolder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lora_lab.analysis.findings import Standing
    from lora_lab.results.folder import RunFolder
    from lora_lab.study.results import TrialResult

Row = dict[str, Any]
SHOWN = 12
"""Rows that are shown."""
ASKED, MEANT = ("prompt", "text"), ("reference", "label")
"""How rows of answers, and rows of classes, call what was asked and what should be said."""


def read_answers(folder: RunFolder, results: Sequence[TrialResult], finalists: Sequence[Standing]) -> Answers | None:
    """Some rows with what each finalist answered, those first on which the answers differ; None where none were kept.

    Args:
        folder: The study's.
        results: Its trials.
        finalists: Whose answers to show, the best first.

    Raises:
        CheckpointError: a file of answers is damaged.
    """
    by_number = {result.number: result for result in results}
    found = {one.number: _of_trial(folder, by_number[one.number]) for one in finalists}
    told = {number: rows for number, rows in found.items() if rows}
    if not told:
        return None
    first = next(iter(told.values()))
    places = [row["place"] for row in first]
    told = {number: rows for number, rows in told.items() if [row["place"] for row in rows] == places}
    base = _rows(TrialFolder.of_base(folder.trials).predictions(0))
    base = base if [row["place"] for row in base] == places else []
    rows = [_answered(index, first, told, base) for index in range(len(first))]
    rows.sort(key=lambda row: -row.variety)  # stable: else in the order of the file
    labels = {one.number: one.label for one in finalists if one.number in told}
    return Answers(labels, rows[:SHOWN], len(rows), sum(row.variety > 0 for row in rows), has_base=bool(base))


def _of_trial(folder: RunFolder, result: TrialResult) -> list[Row]:
    """What a trial answered when it had the adapter that it left; one read off another may have its file there."""
    owners = [result.number] if result.source is None else [result.number, result.source]
    for owner in owners:
        if rows := _rows(folder.files_of(owner).predictions(result.evaluation)):
            return rows
    return []


def _rows(path: Path) -> list[Row]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"the answers in {path} cannot be read ({error}); remove the file: the report then goes without it"
        ) from error


def _answered(index: int, first: Sequence[Row], told: dict[int, list[Row]], base: Sequence[Row]) -> AnsweredRow:
    row = first[index]
    return AnsweredRow(
        prompt=_first_of(row, ASKED),
        reference=_first_of(row, MEANT),
        base=str(base[index]["prediction"]) if base else None,
        answers={number: str(rows[index]["prediction"]) for number, rows in told.items()},
    )


def _first_of(row: Row, names: tuple[str, ...]) -> str:
    return next((str(row[name]) for name in names if name in row), "")
