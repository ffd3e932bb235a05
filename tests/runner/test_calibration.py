"""`plan --calibrate` on a real base, with a clock that goes on by what is computed: no second is measured."""

from __future__ import annotations

import pytest
from workshop import write_base, write_texts

from lora_lab.runner.calibration import calibrate
from lora_lab.runner.pack_size import PackSize
from lora_lab.study.spec import StudySpec
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine


class Work:
    """A clock on which a step takes a second and a tenth for every trial, and a batch of an evaluation the same."""

    def __init__(self, monkeypatch) -> None:
        self.now_s = 0.0
        for engine in (PackedEngine, ReferenceEngine):
            self.slow_down(monkeypatch, engine)

    def slow_down(self, monkeypatch, engine) -> None:
        step, losses = engine.step, engine._token_losses

        def slow_step(own):
            if all(own.trial(number).progress.due_evaluation is None for number in own.active):
                self.now_s += 1.0 + 0.1 * len(own.active)
            return step(own)

        def slow_losses(own, batch, numbers):
            self.now_s += 0.01 * batch.input_ids.numel()
            return losses(own, batch, numbers)

        monkeypatch.setattr(engine, "step", slow_step)
        monkeypatch.setattr(engine, "_token_losses", slow_losses)

    def __call__(self) -> float:
        return self.now_s


def spec_of(**sections) -> StudySpec:
    parts = {
        "study_name": "s",
        "model": {"model_name_or_path": "./llama"},
        "data": {"train": "train.jsonl", "eval": "validation.jsonl", "max_length": 32},
        "training": {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "num_train_epochs": 3},
        "lora": {"target_modules": "attention"},
        "sweep": {"sampler": "grid", "pruner": "none", "pack_size": 2, "parameters": {"r": {"values": [2, 4, 8, 16]}}},
    }
    for name, values in sections.items():
        parts[name] = {**parts[name], **values}
    return StudySpec.model_validate(parts)


@pytest.fixture
def work(tmp_path, monkeypatch):
    write_base(tmp_path / "llama")
    write_texts(tmp_path / "train.jsonl", 24)
    write_texts(tmp_path / "validation.jsonl", 10, seed=1)
    monkeypatch.chdir(tmp_path)
    return Work(monkeypatch)


def test_a_grid_takes_the_steps_that_its_trainings_have(work, tmp_path):
    made = calibrate(spec_of(), clock=work)
    # 4 trainings of 3 epochs of 6 steps, two at once
    assert made.training_s == pytest.approx(4 * 18 / 2 * 1.2)
    assert (made.pack_size, made.steps) == (2, 10)
    assert made.low <= made.seconds <= made.high
    assert not (tmp_path / "runs").exists(), "nothing is kept"


def test_evaluations_are_counted_by_their_tokens(work):
    made, twice = (calibrate(spec_of(training={"eval_steps": steps}), clock=work) for steps in (6, 3))
    assert twice.evaluation_s == pytest.approx(2 * made.evaluation_s)
    more = calibrate(spec_of(sweep={"pack_size": 1}), clock=work)
    assert more.evaluation_s == pytest.approx(made.evaluation_s), "the clock knows no gain of a pack"


def test_runs_within_longer_ones_and_retrainings_are_counted_as_they_are_trained(work):
    training = {"lr_scheduler_type": "constant"}
    epochs = {"parameters": {"num_train_epochs": {"values": [1, 2, 3]}, "r": {"values": [2, 4]}}}
    made = calibrate(spec_of(training=training, sweep=epochs), clock=work)
    assert made.training_s == pytest.approx(2 * 18 / 2 * 1.2)
    confirmed = calibrate(spec_of(training=training, sweep=epochs | {"confirm": {"top": 2, "seeds": 3}}), clock=work)
    assert confirmed.training_s == pytest.approx((2 + 6) * 18 / 2 * 1.2)


def test_the_reference_engine_is_timed_by_its_own_steps(work):
    spec = spec_of(lora={"use_dora": True}, training={"gradient_accumulation_steps": 2})
    made = calibrate(spec, clock=work)
    assert made.pack_size == 1
    assert made.training_s == pytest.approx(4 * 9 * 1.1)


@pytest.mark.parametrize(("gain", "pack_size"), [(1.5, 4), (1.0, 1)])
def test_the_pack_is_as_large_as_it_would_become(work, monkeypatch, gain, pack_size):
    """Where a larger one pays it grows to the number of trainings, and else it goes back."""
    measured = PackSize.measured
    monkeypatch.setattr(PackSize, "measured", lambda own, active, _: measured(own, active, gain ** (active - 1)))
    made = calibrate(spec_of(sweep={"pack_size": "auto"}), clock=work)
    assert made.pack_size == pack_size
    assert made.training_s == pytest.approx(4 * 18 / pack_size * (1.0 + 0.1 * pack_size))
