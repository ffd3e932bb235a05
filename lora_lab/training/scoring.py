"""What trials answer to the prompts of held-out rows, or which classes they give them, and how well."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lora_lab.analysis.paired import ExampleLosses, token_mean
from lora_lab.common.errors import InputError
from lora_lab.study.measures import EVAL_LOSS, MEASURES, PERPLEXITY, TOKEN_ACCURACY, on_test
from lora_lab.study.own_metrics import OWN_METRICS, MetricError
from lora_lab.training.generation import Greedy, answer_text, end_tokens
from lora_lab.training.metrics import OF_ALL, OF_EACH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from lora_lab.data.tokens import Question, TokenizedDataset
    from lora_lab.study.own_metrics import OwnMetric
    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.base.loading import Base
    from lora_lab.training.generation import Answers

    AnswersOf = Callable[[Sequence[int | None], Sequence[np.ndarray], Greedy, int], Answers]
    """What trials with these numbers (None is the bare base) answer to prompts, so many at once for each of them."""


MAX_EXPONENT = 700.0
"""Beyond it, exp is no finite number."""


@dataclass(frozen=True, slots=True)
class Scored:
    """What one trial was measured by beside its loss."""

    examples: Mapping[str, ExampleLosses]
    """By metric, every held-out row's score as a loss, which is the score's negative, and its weight."""
    of_all: Mapping[str, float]
    """The scores that are no mean over rows."""
    predictions: Sequence[Mapping[str, Any]]
    """For every row: where it stands, prompt, reference, prediction, and the scores; empty where nothing was asked."""

    failures: dict[str, str] = field(default_factory=dict)
    """Why a metric of one's own could not be measured, by its name; its value is not a number then."""

    @property
    def values(self) -> dict[str, float]:
        """The trial's score by metric."""
        means = {name: MEASURES[name].as_loss(token_mean(losses)) for name, losses in self.examples.items()}
        return {**means, **self.of_all, **dict.fromkeys(self.failures, math.nan)}


@dataclass(frozen=True, slots=True)
class Tested:
    """What one trial was measured by on rows that choose nothing."""

    losses: ExampleLosses
    """Of every row."""
    scored: Scored | None
    """What else the study asks for."""

    @property
    def failures(self) -> dict[str, str]:
        """Why metrics of one's own could not be measured, by the same names."""
        return {} if self.scored is None else {on_test(name): why for name, why in self.scored.failures.items()}

    @property
    def values(self) -> dict[str, float]:
        """All of it by the names that it has on test rows."""
        scores = {} if self.scored is None else self.scored.values
        return {on_test(name): value for name, value in {EVAL_LOSS.name: token_mean(self.losses), **scores}.items()}


def merged(names: Sequence[str], eval_loss: float, hits: ExampleLosses | None, questioned: Sequence[Scored]) -> Scored:
    """All that a trial was measured by, in the order in which the study names it.

    Args:
        names: The metrics that the study asks for.
        eval_loss: Its loss on the held-out rows.
        hits: Its token accuracy as a loss, where that was measured.
        questioned: What every scorer that was asked made of the same rows.
    """
    examples = {} if hits is None else {TOKEN_ACCURACY.name: hits}
    of_all = {PERPLEXITY.name: math.exp(min(eval_loss, MAX_EXPONENT))}
    for one in questioned:
        examples, of_all = examples | dict(one.examples), of_all | dict(one.of_all)
    failures = {name: why for one in questioned for name, why in one.failures.items()}
    lines = zip(*(one.predictions for one in questioned), strict=True)
    return Scored(
        {name: examples[name] for name in names if name in examples},
        {name: of_all[name] for name in names if name in of_all},
        [{key: value for part in line for key, value in part.items()} for line in lines],
        failures,
    )


class Scorer(Protocol):
    """Measures what trials say of held-out rows."""

    def score(self, numbers: Sequence[int | None], dataset: TokenizedDataset, config: TrialConfig) -> list[Scored]:
        """What `config.evaluation` asks for, of the trials with these numbers; None is the bare base.

        Raises:
            InputError: the rows cannot be scored, or the base cannot say anything of them.
        """


class AnswerScorer:
    """Lets trials answer the prompts of held-out rows, and scores what they say.

    Args:
        base: Whose tokenizer reads and writes, and whose end tokens end an answer.
        answers: Answers prompts with trials in training.
    """

    def __init__(self, base: Base, answers: AnswersOf) -> None:
        self._base, self._answers = base, answers

    def score(self, numbers: Sequence[int | None], dataset: TokenizedDataset, config: TrialConfig) -> list[Scored]:
        """What `config.evaluation` asks for, of the trials with these numbers; None is the bare base.

        Raises:
            InputError: the rows have no answers, or the base cannot give them.
        """
        settings = config.evaluation
        require_answers(dataset, settings.metrics_of("answers", config.model.task_type))
        learned = {question.end for question in dataset.questions if question.end is not None}
        greedy = Greedy(settings.max_new_tokens, end_tokens(self._base.tokenizer, self._base.model) | learned)
        self._require_room(dataset.questions, settings.max_new_tokens)
        prompts = [question.prompt for question in dataset.questions]
        rows = config.training.per_device_eval_batch_size
        return [
            self._scored(dataset.questions, own, settings.metrics, greedy)
            for own in self._answers(numbers, prompts, greedy, rows)
        ]

    def _require_room(self, questions: Sequence[Question], new: int) -> None:
        """The longest prompt and its answer have to be read like all others."""
        limits = self._base.linears.limits
        known = [limit for limit in (limits.positions, limits.alike_up_to) if limit is not None]
        longest = max(questions, key=lambda question: len(question.prompt))
        if known and len(longest.prompt) + new > min(known):
            raise InputError(
                f"evaluation.max_new_tokens: {new} after the longest prompt, of {len(longest.prompt)} tokens "
                f"({longest.place}), are more than the {min(known)} positions that this base reads; lower it"
            )

    def _scored(
        self, questions: Sequence[Question], answers: Sequence[np.ndarray], metrics: Sequence[str], greedy: Greedy
    ) -> Scored:
        tokenizer = self._base.tokenizer
        texts = [answer_text(tokenizer, answer, greedy.stop) for answer in answers]
        meant = [question.reference for question in questions]
        scores = {name: OF_EACH[name](texts, meant) for name in metrics if name in OF_EACH}
        own, failures = own_scores(questions, texts, [OWN_METRICS[name] for name in metrics if name in OWN_METRICS])
        scores |= own
        lines = [
            _line(tokenizer, question, text, {name: row[index] for name, row in scores.items()})
            for index, (question, text) in enumerate(zip(questions, texts, strict=True))
        ]
        once = np.ones(len(questions), dtype=np.int64)
        examples = {
            name: ExampleLosses(np.array([MEASURES[name].as_loss(one) for one in row]), once)
            for name, row in scores.items()
        }
        of_all = {name: OF_ALL[name](texts, meant) for name in metrics if name in OF_ALL}
        return Scored(examples, of_all, lines, failures)


def own_scores(
    questions: Sequence[Question], texts: Sequence[str], metrics: Sequence[OwnMetric]
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """The score of every answer by each metric of one's own, and why one could not score them all."""
    scores, failures = {}, {}
    for metric in metrics:
        try:
            scores[metric.declared.name] = [
                metric.score(question.place, text, question.reference, question.row)
                for question, text in zip(questions, texts, strict=True)
            ]
        except MetricError as error:
            failures[metric.declared.name] = str(error)
    return scores, failures


def require_answers(dataset: TokenizedDataset, metrics: Sequence[str]) -> None:
    """Raise InputError unless every row has an answer, and a prompt to ask for it."""
    if not dataset.questions:
        raise InputError(
            f"evaluation.metrics: {', '.join(metrics)} compares answers with references, but the evaluation rows are "
            "texts; give data.eval rows of prompt and completion, or messages"
        )
    empty = next((question for question in dataset.questions if not len(question.prompt)), None)
    if empty is not None:
        raise InputError(f"{empty.place}: has no prompt to answer; write one, or drop evaluation.metrics")


def _line(tokenizer: Any, question: Question, prediction: str, scores: Mapping[str, float]) -> dict[str, Any]:
    return {
        "place": question.place,
        "prompt": tokenizer.decode(question.prompt),
        "reference": question.reference,
        "prediction": prediction,
        **scores,
    }
