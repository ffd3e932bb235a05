"""Rows of multiple choice, as common datasets write them, become a prompt, its choices, and the right one."""

from __future__ import annotations

import json

import pytest

from lora_lab.common.errors import InputError
from lora_lab.data.bad_rows import BadRows
from lora_lab.data.examples import Completion, content_hash
from lora_lab.data.formats import validate
from lora_lab.data.readers import RawRow, read_rows

CITIES = ["Paris", "Rome", "Oslo"]


def read(*rows, **options):
    bad = BadRows()
    result = validate([RawRow(f"rows:{index}", row) for index, row in enumerate(rows, 1)], "rows", bad, **options)
    bad.settle()
    return result


def only(row, **options):
    ((example,), _) = read(row, **options)
    return example


def refusal(row):
    with pytest.raises(InputError) as caught:
        read({"prompt": "a", "choices": ["b", "c"], "answer": 0}, row)
    message = str(caught.value)
    assert message.startswith("rows:2: ")
    assert "; " in message, "says what to do"
    assert "\n" not in message
    return message


class TestFormats:
    def test_a_choice_follows_the_prompt_after_a_space(self):
        example = only({"prompt": "It lies in", "choices": CITIES, "answer": 1})
        assert example == Completion("It lies in", " Rome", "", (" Paris", " Rome", " Oslo"))

    @pytest.mark.parametrize("space", [" ", "\n", "  \n"])
    def test_white_space_at_the_end_of_the_prompt_goes_with_the_choice(self, space):
        example = only({"prompt": f"It lies in:{space}", "choices": [" Paris", "Rome\n"], "answer": "B"})
        assert example == Completion("It lies in:", f"{space}Rome", "", (f"{space}Paris", f"{space}Rome"))

    @pytest.mark.parametrize(
        "row",
        [
            {"question": "Where?", "choices": {"text": CITIES, "label": ["A", "B", "C"]}, "answerKey": "C", "id": "x"},
            {"question": "Where?", "choices": {"text": CITIES, "label": ["1", "2", "3"]}, "answerKey": "3"},
            {"question": " Where? ", "choices": CITIES, "answer": 2, "subject": "geography"},
            {"question": "Where?", "choices": CITIES, "answer": "C"},
            {"question": "Where?", "choices": CITIES, "answer": "Oslo"},
            {"question": "Where?", "choices": json.dumps(CITIES), "answer": "2"},
        ],
        ids=["ARC", "ARC by numbers", "MMLU", "letter", "text", "CSV"],
    )
    def test_questions_of_common_datasets(self, row):
        assert only(row) == Completion("Question: Where?\nAnswer:", " Oslo", "", (" Paris", " Rome", " Oslo"))

    def test_sentences_to_be_ended(self):
        hellaswag = {"ctx": "A man sits. He", "endings": ["stands up.", "flies."], "label": "0", "activity_label": "x"}
        assert only(hellaswag) == Completion("A man sits. He", " stands up.", "", (" stands up.", " flies."))
        openbookqa = {"question_stem": "The sun gives", "choices": {"text": ["light", "rain"], "label": ["A", "B"]}}
        assert only(openbookqa | {"answerKey": "A"}).completion == " light"

    def test_columns_by_other_names(self):
        row = {"query": "It lies in", "options": CITIES, "gold": 0}
        example = only(row, columns={"prompt": "query", "choices": "options", "answer": "gold"})
        assert example.completion == " Paris"

    def test_what_fitted_before_is_read_as_before(self):
        row = {"text": "t", "question": "q", "choices": CITIES, "answer": 0}
        ((example,), notes) = read(row)
        assert example.text == "t"
        assert "question/choices/answer would fit too" in notes[0]

    def test_other_choices_are_other_data(self):
        row = {"prompt": "p", "choices": CITIES, "answer": 0}
        hashes = {content_hash([only(row | change)]) for change in ({}, {"choices": CITIES[:2]}, {"answer": 1})}
        assert len(hashes) == 3
        assert content_hash([Completion("p", " Paris", "")]) not in hashes

    def test_two_equal_choices_are_one(self):
        assert only({"prompt": "p", "choices": ["a", "b", "a"], "answer": "a"}).completion == " a"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"choices": ["b"]}, "choices: must be 2 or more to choose among, but there is 1"),
        ({"choices": []}, "choices: must be 2 or more to choose among, but there is 0"),
        ({"choices": "b"}, "choices: must be a list of texts, but is 'b'"),
        ({"choices": ["b", 3]}, "choices[1]: must be a string, but is 3 (int)"),
        ({"choices": ["b", " "]}, "choices[1]: must not be empty"),
        ({"choices": None}, "choices: holds no texts"),
        ({"choices": {"text": ["b", "c"], "label": ["A"]}}, "choices: need a label each, but 2 texts have ['A']"),
        ({"answer": 2}, "answer: 2 is none of the 2 choices (their index from 0 to 1, letter from A to B, or text)"),
        ({"answer": -1}, "answer: -1 is none of the 2 choices"),
        ({"answer": "C"}, "answer: 'C' is none of the 2 choices"),
        ({"answer": 0.0}, "answer: 0.0 is none of the 2 choices"),
        ({"answer": True}, "answer: True is none of the 2 choices"),
        ({"answer": ""}, "answer: is empty; take a split with answers"),
        ({"answer": None}, "answer: is empty"),
        ({"choices": {"text": ["b", "c"], "label": ["X", "Y"]}, "answer": 1}, "1 is none of the 2 choices (X, Y)"),
        ({"choices": ["B", "A"], "answer": "A"}, "answer: 'A' may mean the choices 0 and 1 (from 0)"),
        ({"choices": ["0", "1", "5", "2"], "answer": "2"}, "answer: '2' may mean the choices 2 and 3 (from 0)"),
        ({"prompt": " "}, "prompt: must not be empty"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_right(change, problem):
    assert problem in refusal({"prompt": "a", "choices": ["b", "c"], "answer": 0} | change)


def test_they_are_found_by_file_and_line_under_the_names_of_the_file(write_jsonl):
    good = {"ctx": "a", "endings": ["b", "c"], "label": "0"}
    path = write_jsonl([good, good | {"label": "7"}, good | {"endings": ["b"]}])
    bad = BadRows()
    validate(list(read_rows(path)), str(path), bad)
    with pytest.raises(InputError) as caught:
        bad.settle()
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{path}:2: label: '7' is none of the 2 choices")
    assert second.startswith(f"{path}:3: endings: must be 2 or more")
