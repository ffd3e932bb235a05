"""The longest row that a study allows, against the positions of its base."""

from __future__ import annotations

import pytest

from lora_lab.common.errors import InputError
from lora_lab.planning.row_checks import check_rows
from lora_lab.study.settings import EvaluationSettings
from lora_lab.study.spec import StudySpec
from lora_lab.study.targets import InputLimits


def study(max_length: int, parameters=None) -> StudySpec:
    return StudySpec.model_validate(
        {
            "study_name": "rows",
            "model": {"model_name_or_path": "base"},
            "data": {"train": "text.jsonl", "max_length": max_length},
            "sweep": {"n_trials": 4, "parameters": parameters or {"r": {"values": [2, 4]}}},
        }
    )


def test_a_row_that_the_base_cannot_read_is_refused():
    with pytest.raises(InputError, match=r"^data.max_length: 64 is more than the 32 positions .*; lower it$"):
        check_rows(study(64), InputLimits(positions=32, trained_positions=32))
    assert check_rows(study(32), InputLimits(positions=32, trained_positions=32)) == []


@pytest.mark.parametrize("lengths", [{"values": [16, 64]}, {"min": 16, "max": 64}, {"min": 16, "max": 70, "step": 48}])
def test_the_longest_that_is_searched_counts(lengths):
    spec = study(16, {"max_length": lengths})
    with pytest.raises(InputError, match=r"64|70"):
        check_rows(spec, InputLimits(positions=63, trained_positions=63))


def test_a_length_that_was_not_trained_is_noted():
    (note,) = check_rows(study(64), InputLimits(positions=None, trained_positions=32))
    assert "64 is more than the 32 positions that the base was made for" in note


def test_a_base_without_positions_takes_any_row():
    assert check_rows(study(4096), InputLimits()) == []


def test_answers_as_long_as_all_positions_leave_no_prompt():
    spec = study(16).model_copy(update={"evaluation": EvaluationSettings(metrics=("exact_match",), max_new_tokens=32)})
    with pytest.raises(InputError, match=r"^evaluation.max_new_tokens: 32 leaves a prompt none of the 32 positions"):
        check_rows(spec, InputLimits(positions=32))
    assert check_rows(spec, InputLimits(positions=33)) == []
    assert check_rows(study(16), InputLimits(positions=32)) == []
