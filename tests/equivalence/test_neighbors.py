"""Nothing that happens to a neighbor changes a trial: its config, prune and refill, padding, dropout, NaN."""

from __future__ import annotations

import pytest
import torch
from oracle import largest_drift

from lora_lab.study.events import Diverged, Evaluated, Finished, Logged

EXACT = 1e-9


def assert_same_run(left, right, tolerance=EXACT):
    assert len(left.losses) == len(right.losses) > 0
    assert max(abs(a - b) for a, b in zip(left.losses, right.losses, strict=True)) < tolerance
    assert largest_drift(left.adapter, right.adapter) < 10 * tolerance
    assert abs(left.eval_loss - right.eval_loss) < tolerance


def test_changing_one_trial_leaves_its_neighbors_bit_equal_where_shapes_do_not_change(lab32):
    common = [
        lab32.trial(lora={"r": 8}, num_train_epochs=2),
        lab32.trial(lora={"r": 4}, seed=5, num_train_epochs=2),
    ]
    calm = lab32.packed([*common, lab32.trial(learning_rate=1e-4, num_train_epochs=2)])
    wild = lab32.packed([*common, lab32.trial(learning_rate=3e-2, num_train_epochs=2)])
    for index in (0, 1):
        assert calm[index].losses == wild[index].losses
        assert largest_drift(calm[index].adapter, wild[index].adapter) == 0.0
    assert calm[2].losses != wild[2].losses


@pytest.mark.slow
def test_a_refilled_slot_equals_a_fresh_trial(lab64):
    first, second, third = (lab64.trial(lora={"r": r}, seed=r, num_train_epochs=3) for r in (8, 4, 16))
    [fresh] = lab64.packed([third])
    engine = lab64.engine()
    engine.admit(0, first)
    engine.admit(1, second)
    for _ in range(7):
        engine.step()
    engine.discard(1)
    engine.admit(2, third)
    losses, final = [], None
    while engine.active:
        for event in engine.step():
            if event.number == 2 and isinstance(event, Logged):
                losses.append(event.loss)
            if event.number == 2 and isinstance(event, Finished):
                final = event
    assert max(abs(a - b) for a, b in zip(losses, fresh.losses, strict=True)) < EXACT
    assert abs(final.metrics["eval_loss"] - fresh.eval_loss) < EXACT


@pytest.mark.slow
def test_longer_neighbors_and_padding_do_not_matter(lab64):
    short = lab64.trial(data={"max_length": 9}, lora={"lora_dropout": 0.2}, num_train_epochs=3)
    long = lab64.trial(num_train_epochs=3, per_device_train_batch_size=6)
    [alone] = lab64.packed([short])
    together = lab64.packed([long, short, long.model_copy()])
    assert_same_run(together[1], alone)


@pytest.mark.slow
def test_dropout_does_not_depend_on_neighbors_but_acts(lab64):
    dropped = lab64.trial(lora={"lora_dropout": 0.3, "target_modules": "all-linear+head"}, num_train_epochs=3)
    plain = lab64.trial(lora={"target_modules": "all-linear+head"}, num_train_epochs=3)
    [alone] = lab64.packed([dropped])
    [without] = lab64.packed([plain])
    for neighbors in (
        [plain],
        [plain, dropped.model_copy(), lab64.trial(seed=9, lora={"lora_dropout": 0.5})],
    ):
        runs = lab64.packed([*neighbors, dropped])
        assert_same_run(runs[-1], alone)
    assert max(abs(a - b) for a, b in zip(alone.losses, without.losses, strict=True)) > 1e-4


@pytest.mark.slow
def test_short_last_batches_and_mixed_batch_sizes_do_not_matter(lab64):
    uneven = lab64.trial(per_device_train_batch_size=7, gradient_accumulation_steps=2, num_train_epochs=4)
    other = lab64.trial(per_device_train_batch_size=5, num_train_epochs=4, seed=2)
    [alone] = lab64.packed([uneven])
    together = lab64.packed([other, uneven])
    assert len(alone.losses) == 8
    assert_same_run(together[1], alone)


def test_a_diverging_trial_ends_at_its_step_and_its_neighbors_stay_bit_equal(lab32):
    def events(sabotage):
        engine = lab32.engine()
        for seed in range(4):
            engine.admit(seed, lab32.trial(seed=seed, num_train_epochs=3))
        seen = []
        for _ in range(5):
            seen += engine.step()
        sabotage(engine)
        while engine.active:
            seen += engine.step()
        return seen

    def poison(engine):
        with torch.no_grad():
            engine.trial(2).parameters[3] = float("nan")

    def leave_after_one_more_step(engine):
        step = engine.step

        def once():
            happened = step()
            engine.discard(2)
            engine.step = step
            return happened

        engine.step = once

    poisoned, control = events(poison), events(leave_after_one_more_step)
    ended = [event for event in poisoned if isinstance(event, Diverged)]
    assert [(event.number, event.step) for event in ended] == [(2, 6)]
    for number in (0, 1, 3):
        mine = [event for event in poisoned if event.number == number and isinstance(event, (Logged, Evaluated))]
        assert len(mine) == 18 + 3
        assert mine == [e for e in control if e.number == number and isinstance(e, (Logged, Evaluated))]


def test_one_slot_or_many_evaluate_the_same(lab64):
    configs = [lab64.trial(seed=s, num_train_epochs=2) for s in range(3)]
    together = lab64.packed(configs)
    for config, run in zip(configs, together, strict=True):
        [alone] = lab64.packed([config])
        assert abs(alone.eval_loss - run.eval_loss) < EXACT
