"""The objective alone: its loss, its denominator and its evaluation, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from workshop import make_tokens

from lora_lab.analysis.paired import token_mean
from lora_lab.study.settings import TrainingSettings
from lora_lab.training.batch import TokenLosses
from lora_lab.training.evaluation import evaluate
from lora_lab.training.objective import LanguageModeling, objective_of


def test_language_modeling_is_what_a_trial_has():
    assert objective_of(TrainingSettings()) == LanguageModeling()


def test_the_parts_of_a_step_add_up_to_the_mean_over_all_its_label_tokens():
    """However the rows of the step are divided over micro-batches."""
    train, objective = make_tokens(7), LanguageModeling()
    counts = np.array([train.label_tokens(index) for index in range(7)])
    nll = [torch.rand(int(count), dtype=torch.float64) for count in counts]
    expected = float(torch.cat(nll).mean())
    for micro_batches in ([range(7)], [[0, 1, 2], [3, 4], [5, 6]], [[6], [0, 3], [1, 2, 4, 5]]):
        rows = [np.array(batch) for batch in micro_batches]
        denominator = objective.denominator(train, rows)
        assert denominator == counts.sum()
        parts = [
            objective.loss(TokenLosses(torch.cat([nll[i] for i in batch]), counts[batch]), denominator)
            for batch in rows
        ]
        assert float(sum(parts)) == pytest.approx(expected, abs=1e-14)


def test_the_gradient_of_every_label_token_is_one_by_the_denominator():
    nll = torch.rand(5, dtype=torch.float64, requires_grad=True)
    LanguageModeling().loss(TokenLosses(nll, np.array([5])), 20).backward()
    assert torch.equal(nll.grad, torch.full((5,), 1 / 20, dtype=torch.float64))


def test_an_evaluation_keeps_every_example_whatever_shares_its_batch():
    """Losses that depend on the tokens alone, so that the order in which rows are batched must not show."""
    dataset = make_tokens(9)

    def token_losses(batch):
        labels = batch.labels[:, 1:]
        learned = labels != -100
        halves = torch.arange(len(labels)) < len(labels) // 2  # of two trials, the second has twice the loss
        nll = (1.0 + labels) * torch.where(halves, 1.0, 2.0)[:, None]
        return TokenLosses(nll[learned], learned.sum(dim=1).numpy())

    learned = [row[1:][row[1:] != -100] for row in dataset.labels]
    for rows in (1, 2, 4, 9, 20):
        first, second = evaluate(token_losses, dataset, LanguageModeling(), trials=2, rows_per_trial=rows)
        assert first.nll.tolist() == [float((1 + row).sum()) for row in learned]
        assert second.nll.tolist() == [2 * loss for loss in first.nll]
        assert first.label_tokens.tolist() == second.label_tokens.tolist() == [len(row) for row in learned]
        assert token_mean(first) == pytest.approx(np.concatenate([1 + row for row in learned]).mean())
