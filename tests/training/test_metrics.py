"""Every metric against values that its definition, or a well-known implementation, gives."""

from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, sentence_chrf

from lora_lab.study.measures import MEASURES
from lora_lab.training.metrics import OF_ALL, OF_EACH, classification_accuracy, exact_match, f1, json_match, macro_f1

ANSWERS = ("", "yes", "a b c", '{"a": 1}')


def test_every_metric_of_answers_has_its_function_and_stays_within_its_bounds() -> None:
    assert {*OF_EACH, *OF_ALL} == {name for name, measure in MEASURES.items() if measure.source == "answers"}
    for name, of_each in OF_EACH.items():
        scores = of_each(ANSWERS, ["a b c"] * len(ANSWERS))
        assert len(scores) == len(ANSWERS)
        assert all(MEASURES[name].can_be(score) for score in scores)
    for name, of_all in OF_ALL.items():
        assert MEASURES[name].can_be(of_all(ANSWERS, ["a b c"] * len(ANSWERS)))


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("Paris", "Paris", 1.0),
        (" Paris\n", "Paris", 1.0),
        ("New  York", "New\nYork", 1.0),
        ("paris", "Paris", 0.0),
        ("Paris.", "Paris", 0.0),
        ("NewYork", "New York", 0.0),
        ("", "Paris", 0.0),
    ],
)
def test_an_exact_match_differs_in_white_space_alone(answer: str, reference: str, same: float) -> None:
    assert exact_match(answer, reference) == same


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("The cat, a dog!", "cat dog", 1.0),
        ("the cat sat", "the cat", 2 / 3),
        ("cat cat", "cat", 2 / 3),
        ("red", "blue", 0.0),
        ("the", "a", 1.0),
        ("", "blue", 0.0),
        ("theory of an athlete", "theory athlete", 0.8),
    ],
)
def test_f1_is_that_of_squad(answer: str, reference: str, score: float) -> None:
    assert f1(answer, reference) == pytest.approx(score)


ROWS = (
    ("the cat sat on the mat", "the cat is on the mat"),
    ("", "the dog"),
    ("Paris is in France.", "Paris is in France."),
    ("wholly other words", "nothing in common here"),
)


def test_rouge_and_chrf_of_each_row_are_those_of_the_libraries_as_shares() -> None:
    scorer = RougeScorer(["rouge1", "rougeL"])
    said, meant = zip(*ROWS, strict=True)
    for kind in ("rouge1", "rougeL"):
        told = [scorer.score(reference, answer)[kind].fmeasure for answer, reference in ROWS]
        assert OF_EACH[kind](said, meant) == told
        assert told[2] == 1.0
        assert told[1] == told[3] == 0.0
    assert OF_EACH["rouge1"](said, meant)[0] == pytest.approx(5 / 6)
    told = [100 * score for score in OF_EACH["chrf"](said, meant)]
    assert told == pytest.approx([sentence_chrf(answer, [reference]).score for answer, reference in ROWS])
    assert told[2] == 100.0


def test_bleu_is_that_of_the_corpus_and_no_mean_over_rows() -> None:
    said, meant = zip(*ROWS, strict=True)
    assert OF_ALL["bleu"](said, meant) * 100 == pytest.approx(corpus_bleu(said, [meant]).score)
    assert 0 < OF_ALL["bleu"](said, meant) < 1
    assert OF_ALL["bleu"](meant, meant) == 1.0, "not above 1 by the last digit"


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ('{"a": [1, 2], "b": null}', '{"b":null,"a":[1,2]}', True),
        ('```json\n{"a": 1}\n```', '{"a": 1.0}', True),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": [2, 1]}', '{"a": [1, 2]}', False),
        ('{"a": 1, "b": 2}', '{"a": 1}', False),
        ('{"a": 1', '{"a": 1}', False),
        ("no", "no", False),
        ("[" * 100_000, "[]", False),
    ],
)
def test_json_matches_as_values(answer: str, reference: str, same: bool) -> None:
    assert json_match(answer, reference) == same


def test_labels_are_what_an_answer_begins_with_and_macro_f1_weighs_them_alike() -> None:
    meant = ["positive", "very positive", "negative", "negative"]
    said = ["Positive, I think", "very  positive", "neutral", "negative"]
    assert classification_accuracy(said, meant) == [1.0, 1.0, 0.0, 1.0]
    assert macro_f1(said, meant) == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert macro_f1(["x"] * 4, meant) == 0
