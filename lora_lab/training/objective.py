"""What a trial minimizes: the loss of an optimizer step, its denominator, and what an evaluation measures of it.

Engines compute the negative log-likelihood of every label (a token, or the class of a row); everything that turns these
into a loss is here. So another objective (preferences over pairs of rows, weighted tokens, ...) is one more class with
the methods of `Objective`, and one more line in `objective_of`. What both engines guarantee whatever the objective:
rows of different trials never mix, and a step's loss is the sum of its micro-batches' parts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lora_lab.analysis.paired import ExampleLosses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.study.settings import TrialConfig
    from lora_lab.training.batch import TokenLosses


class Objective(Protocol):
    """How one trial's token losses become the loss of its steps and the figures of its evaluations.

    Implementations hold no state, and are equal where they compute the same (frozen dataclasses): trials with equal
    objectives and data are evaluated in one pass.
    """

    def denominator(self, train: TokenizedDataset, micro_batches: Sequence[np.ndarray]) -> int:
        """What the losses of one optimizer step are divided by, over all its micro-batches together.

        Args:
            train: The examples that the trial trains on.
            micro_batches: Indices into `train` of each micro-batch of the step.
        """

    def loss(self, tokens: TokenLosses, denominator: int) -> Tensor:
        """A micro-batch's part of the loss of its optimizer step, as a scalar that gradients flow back from.

        Args:
            tokens: The trial's own label tokens [n], row after row.
            denominator: Of the whole step.
        """

    def examples(self, tokens: TokenLosses) -> ExampleLosses:
        """What an evaluation keeps of each of the batch's R rows: its loss and its weight, as float64 and int64 [R].

        A study compares, and tests, the sum of the losses by the sum of the weights (`token_mean`), lower being better.
        """


@dataclass(frozen=True, slots=True)
class LanguageModeling:
    """Causal language modeling: the mean negative log-likelihood of the label tokens, in nats per token.

    The mean is over all label tokens of the whole optimizer step (what `transformers.Trainer` does with
    `num_items_in_batch`), so that neither accumulation nor the lengths of the rows change a token's weight.
    """

    def denominator(self, train: TokenizedDataset, micro_batches: Sequence[np.ndarray]) -> int:
        """Label tokens of the step."""
        return sum(train.label_tokens(int(index)) for rows in micro_batches for index in rows)

    def loss(self, tokens: TokenLosses, denominator: int) -> Tensor:
        """The sum over the label tokens by the label tokens of the step."""
        return tokens.nll.sum() / denominator

    def examples(self, tokens: TokenLosses) -> ExampleLosses:
        """The sum over each row's label tokens, and how many these are."""
        rows = np.repeat(np.arange(len(tokens.row_counts)), tokens.row_counts)
        sums = np.bincount(rows, tokens.nll.double().cpu().numpy(), minlength=len(tokens.row_counts))
        return ExampleLosses(sums, tokens.row_counts)


@dataclass(frozen=True, slots=True)
class SequenceClassification:
    """The class of a row: the mean cross-entropy of the rows of an optimizer step, in nats per row."""

    def denominator(self, train: TokenizedDataset, micro_batches: Sequence[np.ndarray]) -> int:
        """Rows of the step."""
        del train
        return sum(map(len, micro_batches))

    def loss(self, tokens: TokenLosses, denominator: int) -> Tensor:
        """The sum over the rows by the rows of the step."""
        return tokens.nll.sum() / denominator

    def examples(self, tokens: TokenLosses) -> ExampleLosses:
        """The loss of each row, which counts once."""
        return ExampleLosses(tokens.nll.double().cpu().numpy(), tokens.row_counts)


def objective_of(config: TrialConfig) -> Objective:
    """The objective of a trial: that of its task."""
    return SequenceClassification() if config.model.classifies else LanguageModeling()
