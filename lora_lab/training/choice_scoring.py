"""Which of the choices of a multiple-choice row trials find the likeliest, and how often that is the right one.

As lm-evaluation-harness has it: a choice's score is the log-likelihood of its tokens after the prompt, without what
ends a text; `accuracy` takes the largest one (`acc`), `accuracy_norm` the largest one by the characters of the choice
(`acc_norm`: its documentation says bytes, it counts characters).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.analysis.paired import ExampleLosses
from lora_lab.common.errors import InputError
from lora_lab.data.tokens import IGNORED, TokenizedDataset, fingerprint
from lora_lab.study.measures import ACCURACY, ACCURACY_NORM
from lora_lab.training.scoring import Scored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_lab.data.tokens import Choice, Question
    from lora_lab.study.settings import TrialConfig

    LossesOf = Callable[[TokenizedDataset, Sequence[int | None], TrialConfig], list[ExampleLosses]]
    """The losses of every row by the trials with these numbers (None is the bare base), in nats, summed over labels."""

LENGTH_OF: Mapping[str, Callable[[Choice], int]] = {
    ACCURACY.name: lambda _: 1,
    ACCURACY_NORM.name: lambda choice: len(choice.text),
}
"""What the log-likelihood of a choice is divided by, for each metric."""


class ChoiceScorer:
    """Scores trials by the choices that they find the likeliest (a `Scorer`).

    All trials of a call are measured in the same forward passes.

    Args:
        tokenizer: Writes prompts as text.
        losses: Measures trials in training.
        longest: Tokens of a row that the base reads at most; None for no limit.
    """

    def __init__(self, tokenizer: Any, losses: LossesOf, longest: int | None) -> None:
        self._tokenizer, self._losses, self._longest = tokenizer, losses, longest

    def score(self, numbers: Sequence[int | None], dataset: TokenizedDataset, config: TrialConfig) -> list[Scored]:
        """The metrics of choices that `config.evaluation` asks for, of the trials with these numbers.

        Raises:
            InputError: a row without choices, or with one that is too long for the base.
        """
        metrics = config.evaluation.metrics_of("choices", config.model.task_type)
        rows = choice_rows(dataset.questions, self._longest)
        return [self._scored(dataset.questions, -own.nll, metrics) for own in self._losses(rows, numbers, config)]

    def _scored(self, questions: Sequence[Question], likelihoods: np.ndarray, metrics: Sequence[str]) -> Scored:
        """The scores of one trial from the log-likelihoods [choices of all questions]."""
        borders = np.cumsum([len(question.choices) for question in questions])[:-1]
        lines = [
            self._line(question, own, metrics)
            for question, own in zip(questions, np.split(likelihoods, borders), strict=True)
        ]
        once = np.ones(len(lines), dtype=np.int64)
        hits = {name: np.array([line[name] for line in lines]) for name in metrics}
        return Scored({name: ExampleLosses(-own, once) for name, own in hits.items()}, {}, lines)

    def _line(self, question: Question, likelihoods: np.ndarray, metrics: Sequence[str]) -> dict[str, Any]:
        """What a trial makes of one question; its prediction is the choice by the first of the metrics."""
        reference = question.reference.strip()
        chosen = {name: likeliest(question.choices, likelihoods, name) for name in metrics}
        return {
            "place": question.place,
            "prompt": self._tokenizer.decode(question.prompt),
            "reference": reference,
            "prediction": chosen[metrics[0]].text,
            "choices": [choice.text for choice in question.choices],
            "log_likelihoods": [round(float(one), 6) for one in likelihoods],
            **{name: float(one.text == reference) for name, one in chosen.items()},
        }


def likeliest(choices: Sequence[Choice], likelihoods: np.ndarray, metric: str) -> Choice:
    """The choice that a metric takes, by the log-likelihood of each; of equal ones the first."""
    lengths = np.array([LENGTH_OF[metric](choice) for choice in choices])
    return choices[int(np.argmax(likelihoods / lengths))]


def choice_rows(questions: Sequence[Question], longest: int | None = None) -> TokenizedDataset:
    """A row of tokens for each choice of each question in turn: its prompt, and the choice, which alone is predicted.

    Args:
        questions: Of multiple choice.
        longest: Tokens that a row may have; None for no limit.

    Raises:
        InputError: a question without choices, one without a prompt, a choice without tokens, or a row that is too
            long.
    """
    pairs = [(question, choice) for question in questions for choice in question.choices]
    if not questions or not all(question.choices for question in questions):
        raise InputError(
            "evaluation.metrics: accuracy and accuracy_norm find the likeliest of several choices, but the evaluation "
            "rows have none; give data.eval rows of prompt (or question), choices and answer"
        )
    for question, choice in pairs:
        if not len(question.prompt) or not len(choice.tokens):
            raise InputError(f"{question.place}: choices: {choice.text!r} has no token to predict; correct the row")
        length = len(question.prompt) + len(choice.tokens)
        if longest is not None and length > longest:
            raise InputError(
                f"{question.place}: choices: prompt and choice have {length} tokens, more than the {longest} that this "
                "base reads; shorten the row"
            )
    ids = tuple(np.concatenate([question.prompt, choice.tokens]) for question, choice in pairs)
    labels = tuple(
        np.concatenate([np.full_like(question.prompt, IGNORED), choice.tokens]) for question, choice in pairs
    )
    return TokenizedDataset(ids, labels, fingerprint(ids, labels), ())
