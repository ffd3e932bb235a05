"""What a trial gives of the shorter runs that it contains equals those runs, trained apart."""

from __future__ import annotations

import shutil
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from samples import sample
from workshop import drain, only

from lora_lab.study.events import Evaluated, Finished, Logged, Milestone
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training import assessment

TIMES = {"train_seconds", "eval_seconds", "tokens_per_second"}
READ_OFF = [{"lr_scheduler_type": "constant"}, {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 8}]
BRANCHING = [
    {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.25},
    {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.5, "warmup_steps": 2},
    {"lr_scheduler_type": "warmup_stable_decay", "decay_steps": 6},
]
ADAPTER = "adapter/adapter_model.safetensors"
EPOCHS = 3


def trials(bench, **training):
    """Runs of 3, 2 and 1 epochs."""
    lora = {"r": 4, "lora_dropout": 0.1}
    data = {"forgetting": str(bench.data_folder / "general.jsonl")}
    return [bench.trial(lora=lora, data=data, num_train_epochs=epochs, **training) for epochs in (EPOCHS, 2, 1)]


def finals(event):
    return {name: value for name, value in event.metrics.items() if name not in TIMES}


def files_of(engine, milestone):
    return TrialFolder(engine.trial_folder(milestone.number)).shorter_run(milestone.epochs).path


def same_files(folder, other):
    """Evaluations and adapter, bit for bit."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*.safetensors"))
    assert ADAPTER in names
    for name in names:
        mine, theirs = load_file(folder / name), load_file(other / name)
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine), name
    assert (folder / "adapter/adapter_config.json").read_text() == (other / "adapter/adapter_config.json").read_text()


@pytest.mark.parametrize("schedule", READ_OFF, ids=str)
def test_what_is_read_off_equals_the_run_trained_apart(bench, schedule):
    longest, *shorter = trials(bench, **schedule)
    engine = bench.engine()
    engine.admit(0, longest, shorter)
    events = drain(engine)
    milestones = {event.epochs: event for event in only(events, Milestone)}
    assert list(milestones) == [1, 2]
    for number, config in enumerate(shorter, start=1):
        engine.admit(number, config)
        alone = drain(engine)
        [final] = only(alone, Finished)
        milestone = milestones[config.training.num_train_epochs]
        assert finals(milestone) == finals(final)
        assert milestone.metrics["forgetting"] == final.metrics["forgetting"]
        assert (milestone.step, milestone.epoch, milestone.evaluation) == (final.step, final.epoch, final.epoch)
        assert [e.loss for e in only(alone, Logged)] == [e.loss for e in only(events, Logged)][: final.step]
        same_files(files_of(engine, milestone), engine.trial_folder(number))


@pytest.mark.parametrize("schedule", sample(BRANCHING, BRANCHING[1:]), ids=str)
def test_a_branch_goes_on_as_the_run_trained_apart(bench, schedule):
    longest, *shorter = trials(bench, **schedule)
    engine = bench.engine()
    engine.admit(0, longest, shorter)
    events = drain(engine)
    milestones = {event.epochs: event for event in only(events, Milestone)}
    assert sorted(milestones) == ([1, 2] if "decay_steps" not in schedule else [2])
    for number, config in enumerate(shorter, start=1):
        milestone = milestones.get(config.training.num_train_epochs)
        if milestone is None:
            continue
        assert milestone.is_branch
        engine.admit(number, config)
        alone = drain(engine)
        shutil.move(
            files_of(engine, milestone),
            engine.trial_folder(10 + number),
        )
        engine.admit(10 + number, config)
        branch = drain(engine)
        assert only(branch, Logged)[0].step == milestone.step + 1
        assert [e.loss for e in only(branch, Logged)] == [e.loss for e in only(alone, Logged)][milestone.step :]
        assert [e.eval_loss for e in only(branch, Evaluated)] == [
            e.eval_loss for e in only(alone, Evaluated) if e.evaluation > milestone.evaluation
        ]
        assert finals(only(branch, Finished)[0]) == finals(only(alone, Finished)[0])
        shutil.rmtree(engine.trial_folder(10 + number) / "checkpoint")
        same_files(engine.trial_folder(10 + number), engine.trial_folder(number))


@pytest.mark.parametrize("schedule", [READ_OFF[1], BRANCHING[1]], ids=str)
def test_giving_results_away_changes_nothing_for_the_trial(bench, schedule):
    longest, *shorter = trials(bench, **schedule)
    runs = []
    for contained in ((), shorter):
        engine = bench.engine()
        engine.admit(0, longest, contained)
        runs.append(drain(engine))
    plain, giving = runs
    assert len(only(giving, Milestone)) == 2
    rest = [event for event in giving if not isinstance(event, Milestone)]
    assert [(type(e), e.step) for e in rest] == [(type(e), e.step) for e in plain]
    assert [e.loss for e in only(rest, Logged)] == [e.loss for e in only(plain, Logged)]
    assert [e.forgetting_loss for e in only(rest, Evaluated)] == [e.forgetting_loss for e in only(plain, Evaluated)]
    assert finals(only(rest, Finished)[0]) == finals(only(plain, Finished)[0])


@pytest.mark.parametrize(
    "schedule", [{"lr_scheduler_type": "linear"}, {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.1}]
)
def test_where_the_rate_knows_the_length_nothing_is_shared(bench, schedule):
    longest, *shorter = trials(bench, **schedule)
    engine = bench.engine()
    engine.admit(0, longest, shorter)
    assert not only(drain(engine), Milestone)


def test_a_milestone_follows_its_evaluation(bench):
    longest, *shorter = trials(bench)
    engine = bench.engine()
    engine.admit(0, longest, shorter)
    events = [event for event in drain(engine) if not isinstance(event, Logged)]
    assert [type(event) for event in events] == [Evaluated, Milestone, Evaluated, Milestone, Evaluated, Finished]
    assert [(one.step, two.step) for one, two in pairwise(events) if isinstance(two, Milestone)] == [(6, 6), (12, 12)]


@pytest.mark.parametrize(
    ("stop", "schedule"),
    sample(
        [(stop, schedule) for stop in (5, 6, 9, 10, 12) for schedule in (READ_OFF[0], BRANCHING[0])],
        [(6, READ_OFF[0]), (5, BRANCHING[0]), (10, BRANCHING[0])],
    ),
    ids=str,
)
def test_a_trial_taken_up_again_gives_what_is_left(bench, schedule, stop):
    longest, *shorter = trials(bench, **schedule)
    engine = bench.engine()
    engine.admit(0, longest, shorter)
    before = [event for _ in range(stop) for event in engine.step()]
    engine.save_checkpoints()
    again = bench.engine(folder=engine._folder)
    again.admit(0, longest, shorter)
    after = drain(again)
    given = {event.epochs: event.step for event in only([*before, *after], Milestone)}
    assert sorted(given) == [1, 2]
    assert all(event.step <= stop for event in only(before, Milestone))
    assert all(event.step >= stop for event in only(after, Milestone))


KEPT = {"load_best_model_at_end": True, "early_stopping_patience": 1, "learning_rate": 0.1}
"""The second evaluation is worse than the first, and so the last."""
STOPPING = [
    {"lr_scheduler_type": "constant"},
    {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.1},
    {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.7},
]


@pytest.mark.parametrize("schedule", sample(STOPPING, STOPPING[:2]), ids=str)
def test_a_run_that_stops_early_gives_its_shorter_ones_what_they_give_apart(bench, schedule):
    """Of 5 epochs 3 are never trained: runs of 4 and 3 epochs would have stopped at the same step."""
    data = {"forgetting": str(bench.data_folder / "general.jsonl")}
    longest, *shorter = (bench.trial(data=data, num_train_epochs=n, **KEPT, **schedule) for n in (5, 4, 3, 2, 1))
    engine = bench.engine()
    engine.admit(0, longest, shorter)
    events = drain(engine)
    [stopped] = only(events, Finished)
    assert stopped.step == 12
    assert "stopped early at evaluation 2" in stopped.reason
    milestones = {event.epochs: event for event in only(events, Milestone)}
    assert {4, 3} <= milestones.keys()
    for number, config in enumerate(shorter, start=1):
        milestone = milestones.get(config.training.num_train_epochs)
        engine.admit(number, config)
        alone = drain(engine)
        if milestone is None:
            continue
        if milestone.is_branch:
            shutil.move(files_of(engine, milestone), engine.trial_folder(10 + number))
            engine.admit(10 + number, config)
            [branched] = only(drain(engine), Finished)
            assert finals(branched) == finals(only(alone, Finished)[0])
            assert branched.reason == only(alone, Finished)[0].reason
            continue
        [final] = only(alone, Finished)
        assert finals(milestone) == finals(final)
        assert (milestone.step, milestone.reason) == (final.step, final.reason)
        same_files(files_of(engine, milestone), engine.trial_folder(number))


def test_memory_that_runs_out_at_a_milestone_only_delays_it(bench, monkeypatch):
    longest, *shorter = trials(bench)
    engine = bench.engine()
    engine.admit(0, longest, shorter)
    engine.admit(1, bench.trial(num_train_epochs=1, seed=5))
    whole = assessment.evaluate
    calls = []

    def runs_out(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == 3:  # the two trials' evaluations, then the first one's loss on general text
            raise torch.OutOfMemoryError("out of memory")
        return whole(*arguments, **keywords)

    engine.base_losses(longest)
    monkeypatch.setattr(assessment, "evaluate", runs_out)
    events = []
    while engine.active:
        events += engine.step()
        for number in engine.set_aside:
            engine.admit(number, bench.trial(num_train_epochs=1, seed=5))
        engine.set_aside.clear()
    assert [event.epochs for event in only(events, Milestone)] == [1, 2]
    assert [event.evaluation for event in only(events, Evaluated) if event.number == 0] == [1, 2, 3]


def test_costs_are_known_before_the_end(bench):
    engine = bench.engine()
    engine.admit(0, bench.trial(num_train_epochs=2))
    events = drain(engine)
    [final] = only(events, Finished)
    first, last = only(events, Evaluated)
    for name in ("trainable_params", "peak_memory_bytes"):
        assert first.costs[name] == final.metrics[name]
    assert last.costs["train_seconds"] == pytest.approx(final.metrics["train_seconds"])
    assert first.costs["train_seconds"] == pytest.approx(final.metrics["train_seconds"], rel=0.9)
