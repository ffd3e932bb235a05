"""Steps, micro-batches and learning rates are those of `transformers.Trainer`."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, get_scheduler

from lora_lab.study.schedules import SCHEDULES
from lora_lab.study.settings import TrainingSettings
from lora_lab.training.reference.trainer import _scheduler
from lora_lab.training.schedule import BatchPlan, learning_rate_factor, shared_steps


class OneWeight(torch.nn.Module):
    """The smallest thing that `Trainer` trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.rows = []

    def forward(self, x, num_items_in_batch=None):
        self.rows.append(len(x))
        return {"loss": (self.weight * x).mean()}


class Steps(TrainerCallback):
    """Records the rows of every micro-batch, and the learning rate, of each optimizer step."""

    def __init__(self, model) -> None:
        self.model, self.rows, self.rates = model, [], []

    def on_pre_optimizer_step(self, *_, optimizer=None, **__):
        self.rows.append(list(self.model.rows))
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.model.rows.clear()


def trained(examples, folder, settings: TrainingSettings) -> Steps:
    model = OneWeight()
    steps = Steps(model)
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=settings.per_device_train_batch_size,
            gradient_accumulation_steps=settings.gradient_accumulation_steps,
            num_train_epochs=settings.num_train_epochs,
            max_steps=settings.max_steps or -1,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.lr_scheduler_type,
            # TrainingArguments takes a share below 1 under the same name
            warmup_steps=settings.warmup_steps or settings.warmup_ratio,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=[{"x": float(index)} for index in range(examples)],
        callbacks=[steps],
    ).train()
    return steps


PLANS = [
    (24, {"per_device_train_batch_size": 4, "num_train_epochs": 2}),
    (23, {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "num_train_epochs": 3}),
    (10, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3, "num_train_epochs": 2}),
    (3, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_train_epochs": 3}),
    (1, {"per_device_train_batch_size": 1}),
    (7, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": 9}),
    (40, {"per_device_train_batch_size": 4, "num_train_epochs": 5, "max_steps": 3, "lr_scheduler_type": "linear"}),
    (24, {"per_device_train_batch_size": 4, "num_train_epochs": 3, "lr_scheduler_type": "cosine", "warmup_steps": 4}),
    (24, {"per_device_train_batch_size": 4, "num_train_epochs": 3, "lr_scheduler_type": "linear", "warmup_ratio": 0.2}),
    (9, {"per_device_train_batch_size": 2, "lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5}),
]


@pytest.mark.parametrize(("examples", "fields"), PLANS, ids=str)
def test_steps_micro_batches_and_rates_are_those_of_trainer(tmp_path, examples, fields):
    settings = TrainingSettings(learning_rate=0.1, **fields)
    expected = trained(examples, tmp_path, settings)
    plan = BatchPlan(examples, settings)
    assert plan.total_steps == len(expected.rows)
    assert [[len(rows) for rows in plan.micro_batches(step)] for step in range(plan.total_steps)] == expected.rows
    rates = [0.1 * learning_rate_factor(step, plan.total_steps, settings) for step in range(plan.total_steps)]
    assert rates == expected.rates


TOTALS = (1, 2, 7, 33, 100)
WARMUPS = (0, 1, 3, 5, 100, 150)
DECAYS = [
    ({}, lambda total: math.ceil(0.1 * total)),
    ({"decay_ratio": 0.3}, lambda total: math.ceil(0.3 * total)),
    ({"decay_ratio": 1.0}, lambda total: total),
    ({"decay_steps": 1}, lambda _: 1),
    ({"decay_steps": 40}, lambda _: 40),
]


def settings_of(schedule, totals=TOTALS, warmups=WARMUPS):
    """Settings of a schedule with their number of all steps, and `transformers`' own scheduler for these."""
    facts = SCHEDULES[schedule]
    for total in totals:
        for warmup in warmups if facts.has_warmup else (0,):
            for fields, decay_of in DECAYS if facts.has_decay else (({}, None),):
                settings = TrainingSettings(lr_scheduler_type=schedule, warmup_steps=warmup, **fields)
                specific = {"num_decay_steps": decay_of(total)} if facts.has_decay else {}
                optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(()))], lr=1.0)
                yield (
                    settings,
                    total,
                    get_scheduler(
                        schedule,
                        optimizer,
                        num_warmup_steps=warmup,
                        num_training_steps=total,
                        scheduler_specific_kwargs=specific,
                    ),
                )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_factors_are_those_of_get_scheduler(schedule):
    for settings, total, scheduler in settings_of(schedule):
        for step in range(total):
            [expected] = scheduler.get_last_lr()
            assert learning_rate_factor(step, total, settings) == expected, (settings, total, step)
            scheduler.optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_reference_engine_has_the_scheduler_of_the_settings(schedule):
    for settings, total, expected in settings_of(schedule, totals=(33,), warmups=(0, 5)):
        scheduler = _scheduler(expected.optimizer, settings, total)
        [of_settings], [same] = scheduler.lr_lambdas, expected.lr_lambdas
        assert [of_settings(step) for step in range(total)] == [same(step) for step in range(total)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_shared_steps_are_all_that_longer_trainings_have_in_common(schedule):
    """What the table says of a schedule is what its curve does: no step more and no step less."""
    for settings, total, _ in settings_of(schedule, totals=(33, 100), warmups=(0, 5)):
        shared = shared_steps(settings, total)
        is_as_told = {"all": shared == total, "to the decay": shared < total, "nothing": shared == 0}
        assert is_as_told[SCHEDULES[schedule].shares]
        longer = (total + 1, 2 * total, 10 * total)
        rates = [[learning_rate_factor(step, length, settings) for step in range(total)] for length in (total, *longer)]
        alike = [len(set(at_step)) == 1 for at_step in zip(*rates, strict=True)]
        assert all(alike[:shared])
        assert not all(alike[shared:]) or total - shared <= 1  # the first step of a decay still has the full rate


SHARED = [
    ({"lr_scheduler_type": "constant"}, 40, 40),
    ({"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 7}, 40, 40),
    ({"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}, 40, 0),
    ({"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 7}, 40, 36),
    ({"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.25}, 41, 30),
    ({"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 3}, 40, 37),
    ({"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 50}, 40, 0),
    ({"lr_scheduler_type": "warmup_stable_decay", "warmup_ratio": 0.1}, 40, 0),
    ({"lr_scheduler_type": "linear", "warmup_steps": 7}, 40, 0),
    ({"lr_scheduler_type": "cosine"}, 40, 0),
]


def test_the_number_of_shared_steps():
    for fields, total, shared in SHARED:
        assert shared_steps(TrainingSettings(**fields), total) == shared, fields


@pytest.mark.parametrize("ratio", [0.03, 0.1, 0.5, 1.0])
def test_a_warmup_ratio_is_rounded_as_in_training_arguments(tmp_path, ratio):
    settings = TrainingSettings(lr_scheduler_type="constant_with_warmup", warmup_ratio=ratio)
    for total in (10, 100, 330):
        warmup = TrainingArguments(output_dir=str(tmp_path), warmup_steps=ratio if ratio < 1 else total, use_cpu=True)
        steps = sum(learning_rate_factor(step, total, settings) < 1 for step in range(total))
        assert steps == warmup.get_warmup_steps(total)


# Data order


@pytest.mark.parametrize("seed", [0, 7])
def test_an_epoch_shows_every_example_once_and_epochs_differ(seed):
    settings = TrainingSettings(per_device_train_batch_size=4, gradient_accumulation_steps=3, seed=seed)
    plan = BatchPlan(26, settings)
    epochs = [
        [int(i) for step in range(plan.steps_per_epoch) for rows in plan.micro_batches(e * plan.steps_per_epoch + step)
         for i in rows]
        for e in range(3)
    ]  # fmt: skip
    assert all(sorted(epoch) == list(range(26)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_on_the_seed_not_on_the_batch_size():
    def order(**fields):
        plan = BatchPlan(24, TrainingSettings(**fields))
        return [int(i) for step in range(plan.steps_per_epoch) for rows in plan.micro_batches(step) for i in rows]

    assert order(per_device_train_batch_size=4) == order(per_device_train_batch_size=6)
    assert order(per_device_train_batch_size=4, seed=1) != order(per_device_train_batch_size=4)


# Evaluations


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # 24 rows in batches of 4: 6 steps an epoch
        ({"num_train_epochs": 3}, {6: 1, 12: 2, 18: 3}),
        ({"num_train_epochs": 3, "eval_steps": 4}, {4: 1, 8: 2, 12: 3, 16: 4, 18: 5}),
        ({"max_steps": 10}, {6: 1, 10: 2}),
        ({"max_steps": 12}, {6: 1, 12: 2}),
        ({"max_steps": 3}, {3: 1}),
        ({"max_steps": 5, "eval_steps": 100}, {5: 1}),
        ({"max_steps": 3, "eval_steps": 1}, {1: 1, 2: 2, 3: 3}),
    ],
    ids=str,
)
def test_evaluations_fall_on_epochs_or_intervals_and_on_the_last_step(fields, expected):
    plan = BatchPlan(24, TrainingSettings(per_device_train_batch_size=4, **fields))
    numbers = {step: plan.evaluation(step) for step in range(plan.total_steps + 1)}
    assert {step: number for step, number in numbers.items() if number is not None} == expected
    assert list(expected.values()) == list(range(1, len(expected) + 1))


def test_epochs_are_counted_in_steps():
    plan = BatchPlan(23, TrainingSettings(per_device_train_batch_size=5, gradient_accumulation_steps=2))
    assert plan.steps_per_epoch == 3
    assert plan.epoch(3) == 1.0
    assert math.isclose(plan.epoch(4), 4 / 3)
