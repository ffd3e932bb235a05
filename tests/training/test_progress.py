"""A trial's way through its steps, without a model."""

from __future__ import annotations

import numpy as np
from workshop import Bench, make_tokens

from lora_lab.study.settings import TrainingSettings
from lora_lab.training.progress import Counters, TrialProgress, training_flops

SETTINGS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 3}
TOKENS = make_tokens(10)


def test_it_goes_through_the_plan_and_evaluates_once_at_each_point():
    progress = TrialProgress(TrainingSettings(**SETTINGS, logging_steps=4), TOKENS)
    seen, evaluated, logged = 0, [], []
    while not progress.finished:
        batches = progress.micro_batches
        assert all(
            np.array_equal(a, b) for a, b in zip(batches, progress.plan.micro_batches(progress.step), strict=True)
        )
        tokens = sum(progress.tokens(rows) for rows in batches)
        progress.advance(0.5, tokens)
        seen += tokens
        if progress.is_logged:
            logged.append(progress.step)
        if progress.due_evaluation is not None:
            evaluated.append((progress.step, progress.due_evaluation))
            progress.counters.last_evaluation = progress.due_evaluation
            assert progress.due_evaluation is None
    assert progress.counters == Counters(step=6, last_evaluation=3, train_seconds=3.0, train_tokens=seen)
    assert seen == 3 * sum(map(len, TOKENS.input_ids))
    assert evaluated == [(2, 1), (4, 2), (6, 3)]
    assert logged == [4, 6]  # the last step is always told


def test_only_the_shorter_runs_that_are_still_ahead_are_expected(tmp_path):
    bench = Bench(tmp_path, tmp_path, tmp_path)
    shorter = [bench.trial(num_train_epochs=epochs, lr_scheduler_type="constant") for epochs in (1, 2)]
    progress = TrialProgress(TrainingSettings(**SETTINGS), TOKENS)
    progress.expect(shorter)
    assert [(milestone.step, milestone.epochs) for milestone in progress.milestones] == [(3, 1), (6, 2)]
    progress.counters = Counters(step=3)
    progress.expect(shorter)
    assert [milestone.epochs for milestone in progress.milestones] == [1, 2]  # at its own step it is not yet given
    progress.counters = Counters(step=4)
    progress.expect(shorter)
    assert [milestone.epochs for milestone in progress.milestones] == [2]


def test_flops_of_the_frozen_base_and_of_what_is_trained():
    assert training_flops(10, 1000, 7) == 10 * (2 + 2) * 1000 + 10 * (2 + 4) * 7
