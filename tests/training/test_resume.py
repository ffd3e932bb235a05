"""A trial taken up from any checkpoint ends as the undisturbed one, bit for bit on a CPU."""

from __future__ import annotations

import shutil

import pytest
import torch
from workshop import drain, only

from lora_lab.study.events import Evaluated, Finished, Logged

CASES = {
    # 24 rows: micro-batches of 4, 6 an epoch; of 5, the last one short, and 3 steps of up to 2 of them
    "plain": {"num_train_epochs": 4},
    "accumulation": {
        "per_device_train_batch_size": 5,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 7,
        "weight_decay": 0.1,
        "max_grad_norm": 0.3,
        "eval_steps": 4,
    },
    "sgd": {"optim": "sgd", "num_train_epochs": 2, "weight_decay": 0.1},
    "loraplus": {"loraplus_lr_ratio": 4.0, "num_train_epochs": 2, "gradient_checkpointing": True},
    "8 bit": {"optim": "adamw_8bit", "num_train_epochs": 2, "lr_scheduler_type": "warmup_stable_decay"},
}
# r 80 gives A's of 5120 elements, whose moments are kept in 8 bits, and of 2560, whose are not
RANKS = {"8 bit": 80}
STATE = {"parameters", "exp_avg", "exp_avg_sq"}
LARGE_STATE = {"exp_avg_8bit", "exp_avg_sq_8bit", "exp_avg_absmax", "exp_avg_sq_absmax"}
PACKED = {"packing": True, "max_length": 40}
COMMON = {"lr_scheduler_type": "cosine", "warmup_steps": 5, "learning_rate": 5e-3}


def measured(events, number=0):
    """All that a trial said about itself, but for clock times."""
    mine = [event for event in events if event.number == number]
    figures = [event for event in mine if isinstance(event, (Logged, Evaluated))]
    return figures, {
        key: value
        for event in only(mine, Finished)
        for key, value in event.metrics.items()
        if key not in ("train_seconds", "eval_seconds", "tokens_per_second") and "memory" not in key
    }


def adapter_bytes(engine, number=0):
    return (engine.trial_folder(number) / "adapter" / "adapter_model.safetensors").read_bytes()


def run_with_a_checkpoint_before_every_call(engine, configs, folder):
    """The events of each `engine.step()`, before which the checkpoints were copied to `folder / str(calls)`."""
    for number, config in enumerate(configs):
        engine.admit(number, config)
    per_call, states = [], {}
    while engine.active:
        engine.save_checkpoints()
        shutil.copytree(engine._folder, folder / str(len(per_call)))
        if 0 in engine.active:
            states[engine.trial(0).progress.step] = engine.trial(0).state()
        per_call.append(engine.step())
    return per_call, states


def go_on(engine, steps):
    """Two optimizer steps further are enough where the state then equals the control's in every bit."""
    slot, events = engine.trial(0), []
    while engine.active and slot.progress.step < steps:
        events += engine.step()
    return events, slot


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        ("plain", "float32"),
        *(
            pytest.param(case, dtype, marks=pytest.mark.slow)
            for case, dtype in (
                ("accumulation", "float64"),
                ("sgd", "float64"),
                ("loraplus", "float32"),
                ("8 bit", "float32"),
            )
        ),
    ],
)
def test_resumed_after_any_micro_batch_the_rest_of_the_run_is_bit_equal(bench, tmp_path, case, dtype):
    lora = {"lora_dropout": 0.1, "r": RANKS.get(case, 4)}
    data = PACKED if case == "loraplus" else None
    config = bench.trial(dtype=dtype, lora=lora, data=data, **(COMMON | CASES[case]))
    control = bench.engine(dtype=dtype)
    per_call, states = run_with_a_checkpoint_before_every_call(control, [config], tmp_path / "at")
    figures, final = measured([event for events in per_call for event in events])
    assert len(only(figures, Logged)) == {"plain": 24, "accumulation": 21, "loraplus": 6}.get(case, 12)
    assert len(per_call) == {"plain": 24, "accumulation": 35, "loraplus": 6}.get(case, 12)
    for calls in range(len(per_call)):
        engine = bench.engine(dtype=dtype, folder=tmp_path / "at" / str(calls))
        engine.admit(0, config)
        start = engine.trial(0).progress.step
        done = measured([event for events in per_call[:calls] for event in events])[0]
        assert start == max((event.step for event in done), default=0)
        to_the_end = calls % 6 == 0
        events, slot = go_on(engine, 1000 if to_the_end else start + 2)
        rest, resumed_final = measured(events)
        assert rest == figures[len(done) :][: len(rest)]
        if slot.progress.finished:
            assert len(done + rest) == len(figures)
            assert resumed_final == final
            assert adapter_bytes(engine) == adapter_bytes(control)
        else:
            expected = states[slot.progress.step]
            names = {"sgd": {"parameters"}, "8 bit": STATE | LARGE_STATE}.get(case, STATE)
            assert slot.state().keys() == expected.keys() == names
            assert all(torch.equal(tensor, expected[name]) for name, tensor in slot.state().items())


def test_a_checkpoint_inside_an_optimizer_step_starts_that_step_again(bench, tmp_path):
    config = bench.trial(per_device_train_batch_size=2, gradient_accumulation_steps=3, num_train_epochs=2)
    engine = bench.engine(folder=tmp_path / "trials")
    engine.admit(0, config)
    for _ in range(5):
        engine.step()
    engine.save_checkpoints()
    again = bench.engine(folder=tmp_path / "trials")
    again.admit(0, config)
    slot = again.trial(0)
    assert slot.progress.step == 1
    assert slot.pending is None
    assert not slot.parameters.grad.any()
    logged = [again.step() for _ in range(3)]
    assert [len(events) for events in logged] == [0, 0, 1]
    assert logged[2][0].step == 2


def test_a_pack_is_taken_up_as_it_was(bench, tmp_path):
    configs = [
        bench.trial(lora={"lora_dropout": 0.1}, num_train_epochs=3, **COMMON),
        bench.trial(lora={"r": 8, "target_modules": "attention"}, num_train_epochs=2, seed=1),
        bench.trial(per_device_train_batch_size=7, gradient_accumulation_steps=2, num_train_epochs=4, seed=2),
    ]
    per_call, _ = run_with_a_checkpoint_before_every_call(bench.engine(), configs, tmp_path / "at")
    for calls in range(1, len(per_call), 5):
        engine = bench.engine(folder=tmp_path / "at" / str(calls))
        active = {event.number for events in per_call[calls:] for event in events}
        for number in sorted(active):
            engine.admit(number, configs[number])
        rest = drain(engine)
        for number in active:
            expected, final = measured([event for events in per_call for event in events], number)
            got, got_final = measured(rest, number)
            for left, right in zip(got, expected[-len(got) :], strict=True):
                assert (type(left), left.step) == (type(right), right.step)
                name = "loss" if isinstance(left, Logged) else "eval_loss"
                assert abs(getattr(left, name) - getattr(right, name)) < 1e-6
            assert abs(got_final["eval_loss"] - final["eval_loss"]) < 1e-6


def test_resuming_at_another_place_in_a_pack_changes_nothing(bench, tmp_path):
    """After a stop, trials may meet other neighbors than before."""
    config = bench.trial(num_train_epochs=3, lora={"lora_dropout": 0.2})
    figures, final = measured(bench.run(config))
    engine = bench.engine(folder=tmp_path / "trials")
    engine.admit(0, config)
    for _ in range(8):
        engine.step()
    engine.save_checkpoints()
    other = bench.engine(folder=tmp_path / "trials")
    other.admit(5, bench.trial(seed=9, num_train_epochs=2, data={"max_length": 16}))
    other.step()
    other.admit(0, config)
    rest, resumed_final = measured(drain(other))
    for left, right in zip(rest, figures[-len(rest) :], strict=True):
        assert left.step == right.step
        assert left.loss == pytest.approx(right.loss, abs=1e-9) if isinstance(left, Logged) else True
    assert resumed_final["eval_loss"] == pytest.approx(final["eval_loss"], abs=1e-9)
