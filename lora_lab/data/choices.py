"""Rows of multiple choice -> a prompt, the completions among which to choose, and the right one of them.

What is tokenized is what lm-evaluation-harness makes of such rows: the white space between prompt and choice goes with
the choice.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, Literal

from lora_lab.data.bad_rows import BadField
from lora_lab.data.examples import Completion
from lora_lab.data.fields import from_json, shown, string

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lora_lab.data.readers import RawRow

ChoiceFormat = Literal["choices", "mmlu", "arc", "openbookqa", "hellaswag"]
QUESTION = "Question: {}\nAnswer:"
"""A question as lm-evaluation-harness puts it in its ARC tasks."""
FEWEST = 2


@dataclass(frozen=True, slots=True)
class ChoiceColumns:
    """Where a format has the parts of a row."""

    prompt: str
    choices: str
    answer: str
    template: str = "{}"
    """What is made of the prompt before a choice follows it."""

    @property
    def names(self) -> tuple[str, str, str]:
        """The three columns."""
        return self.prompt, self.choices, self.answer

    def to_completion(self, row: RawRow) -> Completion:
        """The prompt, all that may follow it, and what is right to follow it.

        A choice follows after the white space at the prompt's end, or else after a space.

        Raises:
            BadField: a field that is missing or no text, fewer choices than two, or an answer that is none of them.
        """
        prompt = string(row.fields, self.prompt, self.prompt)
        if self.template != "{}":
            prompt = self.template.format(prompt.strip())
        texts, labels = _choices(row.fields, self.choices)
        right = _answer(row.fields, self.answer, texts, labels)
        given = prompt.rstrip()
        between = prompt[len(given) :] or " "
        choices = tuple(between + text for text in texts)
        return Completion(given, choices[right], row.place, choices)


FORMATS: Mapping[ChoiceFormat, ChoiceColumns] = {
    "choices": ChoiceColumns("prompt", "choices", "answer"),
    "mmlu": ChoiceColumns("question", "choices", "answer", QUESTION),
    "arc": ChoiceColumns("question", "choices", "answerKey", QUESTION),
    "openbookqa": ChoiceColumns("question_stem", "choices", "answerKey"),
    "hellaswag": ChoiceColumns("ctx", "endings", "label"),
}
"""The formats of multiple choice: ours, and those of common datasets of the Hub."""


def _choices(fields: Mapping[str, Any], name: str) -> tuple[list[str], list[str]]:
    """The texts, and what they are called where the row has names for them (`{text: [...], label: [...]}`)."""
    value: Any = from_json(fields.get(name))
    labels: Any = None
    if isinstance(value, dict):
        value, labels = value.get("text"), value.get("label")
    if value is None:
        raise BadField(name, f"{'holds no texts' if name in fields else 'is missing'}; add choices, or delete the row")
    if not isinstance(value, list):
        raise BadField(name, f"must be a list of texts, but is {shown(value)}; correct the row")
    texts = [string({"": text}, "", f"{name}[{index}]").strip() for index, text in enumerate(value)]
    if len(texts) < FEWEST:
        raise BadField(name, f"must be {FEWEST} or more to choose among, but there is {len(texts)}; add others")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(texts)):
        raise BadField(name, f"need a label each, but {len(texts)} texts have {shown(labels)}; correct the row")
    return texts, [] if labels is None else list(map(str, labels))


def _answer(fields: Mapping[str, Any], name: str, texts: Sequence[str], labels: Sequence[str]) -> int:
    value = fields.get(name)
    if value is None or value == "":
        raise BadField(name, f"is {'empty' if name in fields else 'missing'}; take a split with answers, or add one")
    found = _meant(value, texts, labels)
    if not found:
        last, letter = len(texts) - 1, ascii_uppercase[: len(texts)][-1]
        known = ", ".join(labels) if labels else f"their index from 0 to {last}, letter from A to {letter}, or text"
        raise BadField(name, f"{shown(value)} is none of the {len(texts)} choices ({known}); correct it")
    if len(found) > 1:
        places = " and ".join(map(str, sorted(found)))
        raise BadField(
            name, f"{shown(value)} may mean the choices {places} (from 0); give the index as a number, or another name"
        )
    return found.pop()


def _meant(value: Any, texts: Sequence[str], labels: Sequence[str]) -> set[int]:
    """The indices of the choices that an answer may mean."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return set()
    if labels:
        return {index for index, label in enumerate(labels) if label == str(value).strip()}
    if isinstance(value, int):
        return {value} & set(range(len(texts)))
    said = value.strip()
    naming = (list(texts), list(ascii_uppercase[: len(texts)]), list(map(str, range(len(texts)))))
    return {names.index(said) for names in naming if said in names}
