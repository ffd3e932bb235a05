"""The loop of a sweep with trials that are arithmetic, and killed before and after each of its calls."""

from __future__ import annotations

import io
import json
import signal

import pytest
from runner.scripted import Countdown, Killed, executor_for, journaled_ends, loss, results, run, spec

from lora_lab.figures.tables import trials_table
from lora_lab.results.folder import RunFolder
from lora_lab.runner.scripted import Script, ScriptedExecutor
from lora_lab.runner.stopping import StopRequest
from lora_lab.search import records
from lora_lab.search.patience import PatientStorage
from lora_lab.search.store import StudyStore, open_store
from lora_lab.tracking.journal import JOURNAL_NAME, read
from lora_lab.tracking.records import TrialStarted


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "scripted")


@pytest.fixture
def told():
    return io.StringIO()


def checkpoints(folder):
    return list(folder.root.rglob("checkpoint/manifest.json"))


def check_books(folder, study):
    """Storage and journal agree, and no checkpoint is left."""
    told = results(folder, study)
    assert journaled_ends(folder) == [(number, one.state) for number, one in sorted(told.items())]
    assert not list(folder.root.rglob("checkpoint"))
    return told


def test_a_grid_trains_every_cell_once(folder, told):
    study = spec()
    complete, executor = run(folder, study, told)
    assert complete
    found = check_books(folder, study)
    assert {one.state for one in found.values()} == {"complete"}
    assert len({tuple(one.params.items()) for one in found.values()}) == 6
    assert all(one.eval_loss == loss(one.config, 3) for one in found.values())
    assert sorted(executor.trained_epochs) == [(number, epoch) for number in range(6) for epoch in (1, 2, 3)]


def test_sqlite_keeps_what_memory_keeps(folder, told):
    """Most studies here are kept in memory."""
    study = spec(pruner="asha", parameters={"r": {"values": [2, 4, 8]}}, confirm={"top": 1, "seeds": 1})
    run(folder, study, told)
    database = f"sqlite:///{folder.database}"
    run(RunFolder(folder.root / "again"), study, told, opened=open_store(study, database))
    with open_store(study, database, create=False) as store:
        assert {one.number: one for one in store.results()} == results(folder, study)


def test_a_freed_slot_is_filled_at_once(folder, told):
    """Trials of 1 and 3 epochs: the pack is full as long as there are trials."""
    study = spec(
        {"lr_scheduler_type": "linear"}, parameters={"num_train_epochs": {"values": [1, 3]}, "r": {"values": [2, 4]}}
    )
    _, executor = run(folder, study, told)
    assert len(executor.trained_epochs) == 8
    pairs = zip(executor.trained_epochs[::2], executor.trained_epochs[1::2], strict=True)
    assert all(left[0] != right[0] for left, right in list(pairs)[:3])


def test_what_trains_goes_on_while_the_storage_is_away_and_none_is_asked_for(folder, told, monkeypatch):
    """Trials of 1 and 3 epochs: the place of the first that ends stays empty until the storage answers again."""
    study = spec(
        {"lr_scheduler_type": "linear"}, parameters={"num_train_epochs": {"values": [1, 3]}, "r": {"values": [2, 4]}}
    )
    trainer = executor_for(folder)

    def answers(_) -> bool:
        return len({number for number, _ in trainer.trained_epochs}) < 2 or not trainer.active

    monkeypatch.setattr(PatientStorage, "answers", property(answers))
    complete, _ = run(folder, study, told, trainer=trainer)
    assert complete
    together = [number for number, _ in trainer.trained_epochs[:4]]
    assert len(set(together)) == 2, "both that had begun train on, and nothing else does"
    assert len(trainer.trained_epochs) == 2 * (1 + 3)
    assert {one.state for one in results(folder, study).values()} == {"complete"}


def test_a_trial_that_is_refused_fails_alone(folder, told):
    study = spec()
    assert run(folder, study, told, refused_rank=4)[0]
    found = check_books(folder, study)
    assert {one.config.lora.r: one.state for one in found.values()} == {2: "complete", 4: "failed", 8: "complete"}
    assert {one.reason for one in found.values() if one.state == "failed"} == {"r=4 is refused"}


def test_a_trial_that_diverges_ends_alone(folder, told):
    study = spec()
    assert run(folder, study, told, diverging_rank=4)[0]
    found = check_books(folder, study)
    assert {one.config.lora.r: one.state for one in found.values()} == {2: "complete", 4: "diverged", 8: "complete"}
    assert "loss nan" in told.getvalue()


def test_a_trial_whose_objective_is_not_finite_at_its_end_is_told_as_what_the_storage_says(folder, told):
    study = spec(parameters={"r": {"values": [2, 4]}})

    def lost_at_the_end(config, epoch):
        return float("nan") if config.lora.r == 4 and epoch == 3 else loss(config, epoch)

    assert run(folder, study, told, trainer=ScriptedExecutor(folder.trials, 2, Script(loss=lost_at_the_end)))[0]
    found = check_books(folder, study)
    assert {one.config.lora.r: one.state for one in found.values()} == {2: "complete", 4: "diverged"}
    assert "diverged, eval_loss nan: eval_loss is nan at the end" in told.getvalue()


def test_pruning_compares_all_trials_of_a_pack(folder, told):
    """The worse half of the first pack goes, whatever the order in which its trials were asked for."""
    study = spec(pruner="asha", parameters={"r": {"values": [2, 4, 8, 16]}})
    assert run(folder, study, told, pack_size=4)[0]
    found = check_books(folder, study)
    states = {one.config.lora.r: one.state for one in found.values()}
    assert states[16] == "complete"
    assert states[2] == states[4] == "pruned"
    assert all(len(one.curve) < 3 for one in found.values() if one.state == "pruned")


def test_with_several_metrics_the_dominated_are_pruned_in_the_first_pack(folder, told):
    study = spec(
        pruner="asha",
        metric=[{"name": "eval_loss"}, {"name": "trainable_params"}],
        parameters={"r": {"values": [2, 8]}, "learning_rate": {"values": [1e-3, 0.5]}},
    )
    assert run(folder, study, told, pack_size=4)[0]
    found = check_books(folder, study)
    states = {(one.config.lora.r, one.config.training.learning_rate): one.state for one in found.values()}
    assert states == {(2, 1e-3): "complete", (8, 1e-3): "complete", (2, 0.5): "pruned", (8, 0.5): "pruned"}
    assert all(list(one.curve) == [1] for one in found.values() if one.state == "pruned")


def test_equivalent_trials_share_one_training_also_while_it_runs(folder, told):
    values = ["attention", ["q_proj", "v_proj"]]
    study = spec(parameters={"target_modules": {"values": values}, "r": {"values": [2, 4]}})
    _, executor = run(folder, study, told, pack_size=4)
    found = check_books(folder, study)
    assert sorted(one.state for one in found.values()) == ["complete", "complete", "shared", "shared"]
    assert len(executor.trained_epochs) == 6
    for one in found.values():
        if one.state == "shared":
            assert found[one.source].config.lora.r == one.config.lora.r
            assert (one.metrics, one.curve) == (found[one.source].metrics, found[one.source].curve)


def test_the_best_are_confirmed_with_fresh_seeds_once(folder, told):
    study = spec(confirm={"top": 2, "seeds": 2})
    assert run(folder, study, told)[0]
    found = check_books(folder, study)
    repeats = [one for one in found.values() if one.replicate]
    best = sorted((one.eval_loss, one.number) for one in found.values() if not one.replicate)[:2]
    assert sorted((one.confirms, one.replicate) for one in repeats) == sorted((n, r) for _, n in best for r in (1, 2))
    assert {one.config.training.seed for one in repeats} == {1, 2}
    assert run(folder, study, told)[0]
    assert results(folder, study) == found


def test_retrainings_found_running_are_counted_as_retrainings(folder, told):
    """Stopped while the last of 3 trains, and resumed: it is counted on, and is not the best of the search."""
    study = spec(parameters={"r": {"values": [2, 4]}}, confirm={"top": 1, "seeds": 3})
    stop, trainer = StopRequest(), executor_for(folder)
    start = trainer.start

    def stopping_start(work):
        start(work)
        if work.number == 4:
            stop.signal = signal.SIGINT

    trainer.start = stopping_start
    assert not run(folder, study, told, stop=stop, trainer=trainer)[0]
    assert "search done; 3 retrainings of trial 0 with fresh seeds" in told.getvalue()
    running = [one for one in results(folder, study).values() if one.state == "running"]
    assert [(one.number, one.confirms) for one in running] == [(4, 0)]
    resumed = io.StringIO()
    assert run(folder, study, resumed)[0]
    lines = resumed.getvalue().splitlines()
    assert lines[:2] == [
        "scripted: 2 trials, 2 done before, as many at a time as pay",
        "search done; 1 retraining of trial 0 with fresh seeds",
    ]
    assert [line.split()[0] for line in lines if line.startswith("[")] == ["[3/3]"]
    assert lines.count(lines[1]) == 1


def adapters(folder):
    return {int(path.parent.name) for path in folder.trials.glob("*/adapter")}


def test_adapters_that_cannot_be_chosen_are_dropped(folder, told):
    study = spec(parameters={"r": {"values": [2, 4, 8, 16, 32]}})
    run(folder, study, told, pack_size=1)
    ranks = {number: one.config.lora.r for number, one in results(folder, study).items()}
    kept = {ranks[number] for number in adapters(folder)}
    assert kept == {8, 16, 32}


def test_adapters_stay_where_a_retraining_may_yet_change_the_order(folder, told):
    study = spec(parameters={"r": {"values": [2, 4, 8, 16, 32]}}, confirm={"top": 1, "seeds": 1})
    run(folder, study, told, pack_size=1)
    searched = {number for number, one in results(folder, study).items() if not one.replicate}
    assert searched <= adapters(folder)


def test_a_long_study_reads_each_configuration_back_a_few_times(folder, told, monkeypatch):
    """Of 200 trials 100 are trained and 100 read off; reading all back at each end would be over 20,000."""
    read, validate = [], records.asked_of
    monkeypatch.setattr(records, "asked_of", lambda trial: read.append(trial.number) or validate(trial))
    rates = {"min": 1e-4, "max": 1e-2, "step": 1e-4}
    study = spec(
        {"learning_rate": 1e-3},
        parameters={"num_train_epochs": {"values": [1, 2]}, "learning_rate": rates},
    )
    _, executor = run(folder, study, told, pack_size=4)
    assert len(executor.trained_epochs) == 200
    assert len(adapters(folder)) == 100
    assert len(read) <= 7 * 200


STUDIES = {
    "grid": spec(parameters={"r": {"values": [2, 4, 8]}}),
    "shared": spec(parameters={"target_modules": {"values": ["attention", ["q_proj", "v_proj"]]}}),
    "confirmed": spec(parameters={"r": {"values": [2, 4]}}, confirm={"top": 1, "seeds": 1}),
    "pruned": spec(pruner="asha", parameters={"r": {"values": [2, 4, 8]}}),
    "dominated": spec(
        pruner="asha",
        metric=[{"name": "eval_loss"}, {"name": "trainable_params"}],
        parameters={"r": {"values": [2, 4]}, "learning_rate": {"values": [1e-3, 0.5]}},
    ),
}
EVERY = 17


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("stride", [EVERY, pytest.param(1, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_killed_at_any_call_it_goes_on_to_the_same_end(tmp_path, told, name, after, stride):
    study = STUDIES[name]
    control = RunFolder(tmp_path / "control")
    run(control, study, told)
    expected = check_books(control, study)
    calls = 0 if stride == 1 else 5
    while True:
        folder = RunFolder(tmp_path / f"killed-{calls}")
        try:
            run(folder, study, told, Countdown(calls, after))
        except Killed:
            before = {n: one for n, one in results(folder, study).items() if one.state != "running"}
        else:
            assert calls > 30
            return
        complete, executor = run(folder, study, told)
        assert complete
        found = check_books(folder, study)
        assert {number: found[number] for number in before} == before
        assert not {number for number, _ in executor.trained_epochs} & before.keys()
        if name in ("pruned", "dominated"):  # which trials meet on a rung depends on when the kill came
            assert all(one.eval_loss == loss(one.config, max(one.curve)) for one in found.values())
        else:
            assert found == expected
        calls += stride


@pytest.mark.parametrize("calls", [20, 30, 40])
def test_a_kill_repeats_at_most_one_checkpoint_interval(folder, told, calls):
    """Checkpoints are written after every epoch here, so that only the epoch in work is done twice."""
    study = spec(parameters={"r": {"values": [2, 4]}})
    with pytest.raises(Killed):
        run(folder, study, told, Countdown(calls))
    saved = {int(path.parts[-3]): json.loads(path.read_text())["epoch"] for path in checkpoints(folder)}
    ended = {number for number, one in results(folder, study).items() if one.state != "running"}
    _, executor = run(folder, study, told)
    assert sorted(executor.trained_epochs) == [
        (number, epoch) for number in {0, 1} - ended for epoch in range(saved.get(number, 0) + 1, 4)
    ]


def test_asked_to_stop_it_keeps_a_checkpoint_of_every_trial(folder, told):
    study = spec(parameters={"r": {"values": [2, 4]}})
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    assert not run(folder, study, told, stop=stop)[0]
    assert results(folder, study) == {}

    trainer = executor_for(folder)
    stop.signal, wait = None, trainer.wait

    def stopping_wait(timeout_s):
        stop.signal = signal.SIGINT if timeout_s else None
        return wait(timeout_s)

    trainer.wait = stopping_wait
    assert not run(folder, study, told, stop=stop, trainer=trainer)[0]
    assert [json.loads(path.read_text())["epoch"] for path in checkpoints(folder)] == [1, 1]
    assert {one.state for one in results(folder, study).values()} == {"running"}
    assert run(folder, study, told)[0]
    check_books(folder, study)


REFUSED = "up_proj sees every row twice"


def journaled_engines(folder):
    """Engine and reason of every trial that began, as the journal has them."""
    started = (entry.record for entry, _ in read(folder.root) if isinstance(entry.record, TrialStarted))
    return {one.number: (one.params["engine"], one.tags["engine_reason"]) for one in started}


def reported_engines(folder, study):
    table = trials_table(list(results(folder, study).values()), None)
    column = table.headers.index("engine")
    return {row[column].text for row in table.rows}


def test_the_engine_of_a_refused_base_is_told_everywhere_and_by_a_journal_that_a_kill_left_behind(folder, told):
    epochs = {"num_train_epochs": {"values": [1, 3]}, "r": {"values": [2, 4]}}
    study = spec(parameters=epochs, confirm={"top": 1, "seeds": 1})
    trainer = ScriptedExecutor(folder.trials, script=Script(refused_base=REFUSED))
    assert run(folder, study, told, trainer=trainer)[0]
    found = results(folder, study)
    assert any(one.source is not None for one in found.values()), "no trial was read off another"
    expected = dict.fromkeys(found, ("reference", REFUSED))
    assert {number: tuple(one.engine) for number, one in found.items()} == expected
    assert journaled_engines(folder) == expected
    assert reported_engines(folder, study) == {"reference"}

    (folder.root / JOURNAL_NAME).unlink()  # what was never written because of a kill is added from the storage
    assert run(folder, study, told)[0]
    assert journaled_engines(folder) == expected


def test_a_storage_without_engines_is_read_by_the_settings(folder, told, monkeypatch):
    monkeypatch.setattr(StudyStore, "keep_engine", lambda *_: None)  # as it was written before engines were kept
    study = spec(parameters={"use_dora": {"values": [False, True]}})
    assert run(folder, study, told)[0]
    assert {one.config.lora.use_dora: one.engine.name for one in results(folder, study).values()} == {
        False: "packed",
        True: "reference",
    }
