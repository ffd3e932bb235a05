"""How well answers fit their references: one function for every metric that is made of answers."""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from typing import TYPE_CHECKING, Any

from lora_lab.study.measures import (
    BLEU,
    CHRF,
    CLASSIFICATION_ACCURACY,
    EXACT_MATCH,
    F1,
    JSON_MATCH,
    MACRO_F1,
    ROUGE_1,
    ROUGE_L,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    OfEach = Callable[[Sequence[str], Sequence[str]], list[float]]
    """From answers and their references to a score of each."""
    OfAll = Callable[[Sequence[str], Sequence[str]], float]
    """From answers and their references to one score, which is no mean over them."""

ARTICLES = re.compile(r"\b(a|an|the)\b")
FENCE = re.compile(r"^```\w*\n(.*?)\n?```$", re.DOTALL)


def exact_match(answer: str, reference: str) -> float:
    """1 where both texts are the same but for white space: its kind and amount, and at both ends; otherwise 0."""
    return float(answer.split() == reference.split())


def f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of words, as SQuAD's own script has it (arXiv:1606.05250).

    Words are compared in lower case, without punctuation and without a, an, the. Where one side has no word, the score
    is 1 if the other has none either, otherwise 0.
    """
    said, meant = _words(answer), _words(reference)
    if not said or not meant:
        return float(said == meant)
    common = sum((Counter(said) & Counter(meant)).values())
    return 2 * common / (len(said) + len(meant))


def _words(text: str) -> list[str]:
    plain = "".join(character for character in text.lower() if character not in string.punctuation)
    return ARTICLES.sub(" ", plain).split()


def rouge(kind: str) -> OfEach:
    """ROUGE of rouge-score (Lin, 2004): the F1 of words or of the longest common subsequence, without stemming.

    Only Latin letters and digits are words there.

    Args:
        kind: As rouge-score names it, `rouge1` or `rougeL`.
    """

    def of_each(answers: Sequence[str], references: Sequence[str]) -> list[float]:
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([kind])
        pairs = zip(answers, references, strict=True)
        return [float(scorer.score(reference, answer)[kind].fmeasure) for answer, reference in pairs]

    return of_each


def bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of all answers together, as sacrebleu has it by default (tokenizer 13a), from 0 to 1."""
    from sacrebleu import metrics

    return _share(metrics.BLEU(force=True).corpus_score(answers, [references]).score)


def chrf(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """chrF2 of each answer, as sacrebleu has it by default (characters up to 6-grams), from 0 to 1."""
    from sacrebleu import metrics

    scorer = metrics.CHRF()
    pairs = zip(answers, references, strict=True)
    return [_share(scorer.sentence_score(answer, [reference]).score) for answer, reference in pairs]


def _share(percent: float) -> float:
    """From sacrebleu's percents, of which the largest may be above 100 by the last digit."""
    return min(float(percent) / 100.0, 1.0)


def json_match(answer: str, reference: str) -> float:
    """1 where both are the same JSON value, whatever their spaces and the order of keys; otherwise 0.

    An answer may stand in a Markdown fence. A reference that is no JSON is matched by nothing.
    """
    meant = _value(reference)
    return float(meant is not _NO_JSON and _same(_value(answer), meant))


_NO_JSON = object()


def _value(text: str) -> Any:
    text = text.strip()
    fenced = FENCE.match(text)
    try:
        return json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return _NO_JSON


def _same(one: Any, other: Any) -> bool:
    """As JSON has it: true is not 1, while 1 and 1.0 are one number."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def labels_of(answers: Sequence[str], references: Sequence[str]) -> list[str]:
    """The label that each answer gives: of the references' own, the longest that it begins with; else itself.

    Case and white space do not count.
    """
    known = sorted({_plain(reference) for reference in references}, key=len, reverse=True)
    return [next((label for label in known if _plain(answer).startswith(label)), _plain(answer)) for answer in answers]


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def classification_accuracy(answers: Sequence[str], references: Sequence[str]) -> list[float]:
    """1 for every answer that gives the label of its reference (`labels_of`), otherwise 0."""
    given = labels_of(answers, references)
    return [float(label == _plain(reference)) for label, reference in zip(given, references, strict=True)]


def macro_f1(answers: Sequence[str], references: Sequence[str]) -> float:
    """The mean of the F1 of every label that references have, whatever its share; no label at all counts as wrong."""
    return macro_f1_of(labels_of(answers, references), [_plain(reference) for reference in references])


def macro_f1_of(given: Sequence[str | int], meant: Sequence[str | int]) -> float:
    """The mean of the F1 of every class that is meant somewhere, whatever its share."""
    from sklearn.metrics import f1_score  # takes a second to import

    return float(f1_score(meant, given, labels=sorted(set(meant)), average="macro", zero_division=0.0))


def _one_by_one(score: Callable[[str, str], float]) -> OfEach:
    return lambda answers, references: [score(*pair) for pair in zip(answers, references, strict=True)]


OF_EACH: Mapping[str, OfEach] = {
    EXACT_MATCH.name: _one_by_one(exact_match),
    F1.name: _one_by_one(f1),
    ROUGE_1.name: rouge("rouge1"),
    ROUGE_L.name: rouge("rougeL"),
    CHRF.name: chrf,
    JSON_MATCH.name: _one_by_one(json_match),
    CLASSIFICATION_ACCURACY.name: classification_accuracy,
}
"""Metrics whose mean over the rows is the trial's score, by name."""
OF_ALL: Mapping[str, OfAll] = {MACRO_F1.name: macro_f1, BLEU.name: bleu}
"""Metrics that are no mean, by name: their verdict rests on seeds alone."""
