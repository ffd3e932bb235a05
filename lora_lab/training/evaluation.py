"""Held-out losses of every example, for several trials in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lora_lab.analysis.paired import ExampleLosses
from lora_lab.common.activity import Activity, unwatched
from lora_lab.training.batch import padded

if TYPE_CHECKING:
    from collections.abc import Callable

    from lora_lab.common.activity import Beat
    from lora_lab.data.tokens import TokenizedDataset
    from lora_lab.training.batch import PackedBatch, TokenLosses
    from lora_lab.training.objective import Objective


@torch.no_grad()
def evaluate(
    token_losses: Callable[[PackedBatch], TokenLosses],
    dataset: TokenizedDataset,
    objective: Objective,
    *,
    trials: int,
    rows_per_trial: int,
    length_of: Callable[[int], int] | None = None,
    what: str = "evaluation",
    beat: Beat = unwatched,
) -> list[ExampleLosses]:
    """Measure trials on every example of a dataset.

    Examples are taken in order of length, so that little is padded; which examples share a batch does not depend on
    the trials.

    Args:
        token_losses: Computes the losses of a batch in which each trial has the same rows, trial after trial.
        dataset: The examples.
        objective: What is measured of each; the trials have it in common.
        trials: How many there are.
        rows_per_trial: Examples that each trial is measured on at once.
        length_of: To which length rows are padded, as in `padded`.
        what: The evaluation, in words.
        beat: Called before each batch.

    Returns:
        One trial after the other, its figures in the order of `dataset`.
    """
    order = np.argsort([-len(ids) for ids in dataset.input_ids], kind="stable")
    nll = np.zeros((trials, len(dataset)))
    counts = np.zeros(len(dataset), dtype=np.int64)
    starts = range(0, len(order), rows_per_trial)
    for done, start in enumerate(starts):
        beat(Activity(what, done, len(starts)))
        chosen = order[start : start + rows_per_trial]
        examples = objective.examples(token_losses(padded([dataset], [chosen], length_of).repeated(trials)))
        nll[:, chosen] = examples.nll.reshape(trials, -1)
        counts[chosen] = examples.label_tokens[: len(chosen)]
    return [ExampleLosses(row, counts) for row in nll]
