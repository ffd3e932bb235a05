"""`kill -9` at random moments: nothing finished is lost or doubled, and the end is that of an undisturbed run."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter

import pytest
import torch
from sweep_process import EVAL, TRAIN, study

from lora_lab.common.errors import StorageError
from lora_lab.search.store import open_store
from lora_lab.study.events import Diverged, Failed, Finished
from lora_lab.tracking.journal import read
from lora_lab.tracking.records import TrialEnded
from lora_lab.training.base.loading import load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.packed_engine import PackedEngine

TRAINING = {"num_train_epochs": 3, "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 3}
DATA = {"train": TRAIN | {"max_examples": 32}, "eval": EVAL}
GRID = {
    "sampler": "grid",
    "pruner": "none",
    "n_trials": None,
    "parameters": {"r": {"values": [2, 8]}, "learning_rate": {"values": [1e-3, 4e-3, 1e-2]}},
}
EPOCHS = GRID | {"parameters": {"num_train_epochs": {"values": [1, 2, 3]}, "r": {"values": [2, 8]}}}
SEARCH = {"sampler": "tpe", "pruner": "asha", "n_trials": 8}
OPTIONS = ("--checkpoint-interval", "0.2")


def finished_trials(lab, name):
    """Outcomes that are in the storage; none where there is no storage yet."""
    try:
        return {number: one for number, one in lab.results(name).items() if one.state != "running"}
    except StorageError:
        return {}


def killed_until_complete(lab, name, kills, numbers, longest_s):
    """Run a study to its end, with at most `kills` kills on the way; how many there were."""
    known, done = {}, 0
    while True:
        command = lab.start("--set", f"study_name={name}", *OPTIONS)
        if done < kills:
            command.process.join(numbers.uniform(0.1, longest_s))
            command.signal(signal.SIGKILL)
        ended = command.end()
        now = finished_trials(lab, name)
        assert {number: now.get(number) for number in known} == known, "a finished trial was lost or changed"
        known = now
        if ended.code == 0:
            return done
        assert ended.code == -signal.SIGKILL, ended.err
        done += 1


def check_books(lab, name, trials):
    """Storage, journal and MLflow each have every trial once."""
    results = lab.results(name)
    assert sorted(results) == list(range(trials))
    assert "running" not in {one.state for one in results.values()}
    ends = Counter(entry.record.number for entry, _ in read(lab.run_folder(name)) if type(entry.record) is TrialEnded)
    assert ends == Counter(range(trials))
    parent, children = lab.children(name)
    assert parent.info.status == "FINISHED"
    states = {int(run.data.tags["lora_lab.trial"]): run.data.tags["lora_lab.state"] for run in children}
    assert len(children) == trials
    assert states == {number: one.state for number, one in results.items()}
    assert not list(lab.run_folder(name).glob("trials/*/checkpoint"))


def kill_rounds(lab, kills, seed, check):
    """Complete one study after another until `kills` kills were survived."""
    numbers = random.Random(seed)
    began = time.monotonic()
    assert lab.sweep("--set", "study_name=control").code == 0
    longest_s = 0.7 * (time.monotonic() - began)
    survived = rounds = 0
    while survived < kills:
        rounds += 1
        survived += killed_until_complete(lab, f"round-{rounds}", kills - survived, numbers, longest_s)
        check(f"round-{rounds}")


MANY = [pytest.param(20, seed, marks=[pytest.mark.faults, pytest.mark.timeout(1800)]) for seed in (2, 3)]
FEW = (2, 1)


@pytest.mark.parametrize(("kills", "seed"), [FEW, *MANY])
def test_a_grid_ends_as_if_it_had_not_been_disturbed(lab, kills, seed):
    lab.write(study(training=TRAINING, data=DATA, sweep=GRID))

    def check(name):
        check_books(lab, name, 6)
        control, results = lab.results("control"), lab.results(name)
        for number, one in results.items():
            assert (one.state, one.config) == (control[number].state, control[number].config)
            assert one.eval_loss == pytest.approx(control[number].eval_loss, abs=1e-4)
            assert one.curve == pytest.approx(control[number].curve, abs=1e-4)
            assert one.metrics["steps"] == 24
            assert one.metrics["train_tokens"] == control[number].metrics["train_tokens"]

    kill_rounds(lab, kills, seed, check)


@pytest.mark.parametrize(("kills", "seed"), [pytest.param(*FEW, marks=pytest.mark.slow), *MANY])
def test_a_pruned_search_keeps_only_true_values(lab, kills, seed):
    """Each trial, run alone in a fresh engine, measures what the storage says."""
    lab.write(study(training=TRAINING, data=DATA, sweep=SEARCH))

    def check(name):
        check_books(lab, name, 8)
        results = lab.results(name)
        assert {one.state for one in results.values()} <= {"complete", "pruned"}
        for one in results.values():
            if one.state == "complete":
                assert alone(lab, one.config, f"{name}-{one.number}") == pytest.approx(one.eval_loss, abs=1e-4)

    kill_rounds(lab, kills, seed, check)


@pytest.mark.parametrize(("kills", "seed"), [pytest.param(*FEW, marks=pytest.mark.slow), *MANY])
def test_runs_of_fewer_epochs_are_given_once_and_true(lab, kills, seed):
    """Each trial that was read off a longer one, run alone, measures what the storage says."""
    lab.write(study(training=TRAINING, data=DATA, sweep=EPOCHS))

    def check(name):
        check_books(lab, name, 6)
        results = lab.results(name)
        assert Counter(one.state for one in results.values()) == {"complete": 2, "shared": 4}
        assert len({one.config.model_dump_json() for one in results.values()}) == 6
        assert not list(lab.run_folder(name).glob("trials/*/epochs-*"))
        for one in results.values():
            epochs = one.config.training.num_train_epochs
            assert (one.metrics["steps"], list(one.curve)) == (8 * epochs, list(range(1, epochs + 1)))
            if one.state == "shared":
                assert results[one.source].config.training.num_train_epochs == 3
                assert one.curve == {epoch: results[one.source].curve[epoch] for epoch in one.curve}
                assert alone(lab, one.config, f"{name}-{one.number}") == pytest.approx(one.eval_loss, abs=1e-4)

    kill_rounds(lab, kills, seed, check)


def alone(lab, config, label):
    """eval_loss of a trial that has an engine for itself."""
    config = lab.found_from_here(config)
    base = load_base(config.model, torch.device("cpu"))
    engine = PackedEngine(base, DataCatalog(base.tokenizer, lab.folder / "cache"), lab.folder / "alone" / label)
    engine.admit(0, config)
    while engine.active:
        for event in engine.step():
            assert not isinstance(event, (Diverged, Failed)), event
            if isinstance(event, Finished):
                return event.metrics["eval_loss"]
    raise AssertionError("the trial ended without a word")


def test_after_a_kill_a_trial_goes_on_from_its_checkpoint(lab):
    """What was evaluated before the checkpoint is not trained again."""
    lab.write(study(training=TRAINING | {"num_train_epochs": 40}, data=DATA, sweep=GRID | {"pack_size": 2}))
    command = lab.start(*OPTIONS)
    manifest = lab.run_folder() / "trials/0000/checkpoint/manifest.json"

    def evaluations_saved() -> int:
        return json.loads(manifest.read_text())["progress"]["last_evaluation"] if manifest.is_file() else 0

    deadline = time.monotonic() + 120
    while evaluations_saved() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command.signal(signal.SIGKILL)
    command.end()
    saved = evaluations_saved()
    again = lab.start(*OPTIONS)
    again.wait_for("trial 0 epoch")
    again.signal(signal.SIGKILL)
    assert f"trial 0 epoch {saved + 1}:" in again.end().out
    with open_store(lab.spec(), f"sqlite:///{lab.run_folder() / 'study.db'}", create=False) as store:
        assert {one.state for one in store.results()} == {"running"}
