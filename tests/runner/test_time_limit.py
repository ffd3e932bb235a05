"""A sweep that must end in time: which trials begin, what is left for later, and what is said of it."""

from __future__ import annotations

import io

import pytest
from runner.scripted import executor_for, results, run, spec

from lora_lab.common.errors import TrainingError
from lora_lab.results.folder import RunFolder
from lora_lab.results.results import check_finished
from lora_lab.runner.options import RunOptions
from lora_lab.runner.scripted import scripted
from lora_lab.runner.session import run_study
from lora_lab.runner.stopping import StopRequest
from lora_lab.runner.time_limit import HOUR_S, TimeLimit, search_share
from lora_lab.terminal.display import Display, PlainView
from lora_lab.training.memory.room import DEFAULT_LIMIT


class Clock:
    """Hours that pass when they are told to."""

    def __init__(self) -> None:
        self.hours = 0.0

    def __call__(self) -> float:
        return self.hours * HOUR_S


def timed(folder, clock, hours_per_wait=1.0, **kinds):
    """An executor for which every wait takes its time."""
    executor = executor_for(folder, **kinds)
    plain = executor.wait

    def wait(timeout_s):
        clock.hours += hours_per_wait if timeout_s else 0.0
        return plain(timeout_s)

    executor.wait = wait
    return executor


def test_without_a_limit_the_time_is_never_over():
    clock = Clock()
    limit = TimeLimit(None, clock)
    clock.hours = 1e6
    assert not limit.passed
    assert limit.admits_another


def test_a_trial_begins_only_where_the_longest_so_far_would_end_in_time():
    clock = Clock()
    limit = TimeLimit(10, clock)
    for number, (hours, whole) in enumerate([(2, True), (4, False), (1, True)]):
        limit.trial_began(number)
        clock.hours += hours
        limit.trial_ended(number, trained_whole=whole)
    assert limit.admits_another  # 7 hours are over, and a training takes 2
    clock.hours = 8.5
    assert not limit.admits_another
    assert not limit.passed
    clock.hours = 10
    assert limit.passed


@pytest.mark.parametrize(
    ("confirm", "trials", "share"),
    [(None, 24, 1.0), ({"top": 2, "seeds": 3}, 24, 0.8), ({"top": 1, "seeds": 2}, 6, 0.75)],
)
def test_retrainings_have_their_share(confirm, trials, share):
    sweep = spec(confirm=confirm).sweep
    assert search_share(sweep, trials) == pytest.approx(share)
    clock = Clock()
    limit = TimeLimit(10, clock)
    limit.keep_for_retrainings(share)
    clock.hours = 10 * share + 0.1
    assert not limit.admits_another
    limit.search_is_over()
    assert limit.admits_another is (confirm is not None)


def test_what_did_not_begin_in_time_begins_at_the_next_call(tmp_path):
    folder, study, clock = RunFolder(tmp_path / "s"), spec(), Clock()
    complete, executor = run(folder, study, io.StringIO(), trainer=timed(folder, clock), limit=TimeLimit(7, clock))
    assert not complete
    first = results(folder, study)
    assert 0 < sum(one.state == "complete" for one in first.values()) < 6
    assert clock.hours <= 7
    assert not executor.active
    complete, _ = run(folder, study, io.StringIO())
    assert complete
    after = results(folder, study)
    assert len(after) == 6
    assert {number: after[number] for number, one in first.items() if one.state == "complete"} == {
        number: one for number, one in first.items() if one.state == "complete"
    }


def test_trials_that_outlast_the_time_go_on_from_their_checkpoints(tmp_path):
    folder, study, clock = RunFolder(tmp_path / "s"), spec(), Clock()
    complete, _ = run(folder, study, io.StringIO(), trainer=timed(folder, clock), limit=TimeLimit(2, clock))
    assert not complete
    assert {one.state for one in results(folder, study).values()} == {"running"}
    assert len(list(folder.root.rglob("checkpoint/manifest.json"))) == 2
    complete, executor = run(folder, study, io.StringIO())
    assert complete
    assert (0, 1) not in executor.trained_epochs


def test_finalists_are_retrained_in_the_time_that_was_kept_for_them(tmp_path):
    folder, clock = RunFolder(tmp_path / "s"), Clock()
    study = spec(confirm={"top": 1, "seeds": 2})
    run(folder, study, io.StringIO(), trainer=timed(folder, clock), limit=TimeLimit(10, clock))
    found = results(folder, study)
    searched = [one for one in found.values() if not one.replicate]
    assert 0 < len(searched) < 6
    assert len(found) - len(searched) == 2
    assert clock.hours <= 10


def test_no_time_at_all_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = spec()
    folder = RunFolder.of(study.study_name)
    options = RunOptions(memory_limit=DEFAULT_LIMIT, tracking_uri="sqlite:///mlflow.db", max_hours=0.0)
    end = run_study(
        study,
        folder,
        "test",
        options,
        display=Display(PlainView(io.StringIO())),
        stop=StopRequest(),
        backend=scripted(folder, pack_size=2),
    )
    assert not end.complete
    assert not end.results.trials
    with pytest.raises(TrainingError, match=r"finished within --max-hours; the same command goes on"):
        check_finished(end.results, complete=end.complete)
    assert "The study is not finished: 0 of 6 trials" in end.results.notes[0].sentence
    assert "not finished" in (folder.root / "summary.md").read_text()
