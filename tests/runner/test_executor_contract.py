"""What every executor promises to a coordinator (`lora_lab.runner.executor.Executor`), whoever trains.

Another kind of executor is one more entry of `BENCHES`: a bench makes executors on one folder, and knows a
configuration that they can train.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import pytest
from workshop import write_base, write_texts

from lora_lab.runner.executor import Work
from lora_lab.runner.in_process import InProcessExecutor
from lora_lab.runner.scripted import Fault, Script, ScriptedExecutor
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.events import ENDINGS, Evaluated, Failed, Finished, Logged, Milestone, OutOfMemory, Started
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.memory.room import MemoryLimit

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.runner.executor import Executor
    from lora_lab.study.events import TrialEvent

EPOCHS = 3


class Bench(Protocol):
    """Makes executors of one kind."""

    folder: Path

    def executor(self, *, pack_size: int = 2) -> Executor:
        """A fresh one on the same folder: its process was killed, and begins anew."""

    def tight(self) -> Executor:
        """One on which no trial fits into memory."""


@dataclass
class Scripted:
    folder: Path

    def executor(self, *, pack_size: int = 2) -> ScriptedExecutor:
        return ScriptedExecutor(self.folder, pack_size)

    def tight(self) -> ScriptedExecutor:
        return ScriptedExecutor(self.folder, 2, Script(fault=lambda *_: Fault(OutOfMemory, "does not fit even alone")))


@dataclass
class InProcess:
    folder: Path

    def executor(self, *, pack_size: int = 2) -> InProcessExecutor:
        return InProcessExecutor(self.folder, self.folder.parent / "data", pack_size, checkpoint_interval_s=0.0)

    def tight(self) -> InProcessExecutor:
        return InProcessExecutor(self.folder, self.folder.parent / "data", 2, MemoryLimit(1000))


BENCHES = {"scripted": Scripted, "in process": InProcess}


@pytest.fixture(params=BENCHES)
def bench(request, tmp_path) -> Bench:
    return BENCHES[request.param](tmp_path / "trials")


@pytest.fixture(scope="module", autouse=True)
def base(tmp_path_factory):
    """A base of two layers, and texts; the scripted kind needs neither."""
    folder = tmp_path_factory.mktemp("base")
    write_base(folder / "llama")
    write_texts(folder / "train.jsonl", 8)
    write_texts(folder / "validation.jsonl", 4, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


def trial(r: int = 4, epochs: int = EPOCHS, **training: object) -> TrialConfig:
    settings = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant", **training}
    return TrialConfig(
        model=ModelSettings(model_name_or_path="./llama", dtype="float64"),
        data=DataSettings(train="train.jsonl", eval="validation.jsonl", max_length=32),
        training=TrainingSettings(num_train_epochs=epochs, **settings),
        lora=LoraSettings(r=r, target_modules="attention"),
    )


def drain(executor: Executor) -> list[TrialEvent]:
    """Everything that is told until nothing is active."""
    events = []
    while executor.active:
        events += executor.wait(1.0)
    return events


def of(events: list[TrialEvent], number: int) -> list[TrialEvent]:
    return [event for event in events if event.number == number]


def curve(events: list[TrialEvent]) -> dict[int, float]:
    return {event.evaluation: event.eval_loss for event in events if isinstance(event, Evaluated)}


def test_the_bench_makes_what_it_says(bench):
    assert type(bench.executor()).__name__.lower().startswith(type(bench).__name__.lower())


def test_it_says_what_was_loaded_and_measures_the_bare_base(bench):
    executor = bench.executor()
    assert executor.prepare(trial()).device
    loss, forgetting = executor.base_losses(trial())
    assert loss > 0
    assert forgetting is None
    assert executor.base_losses(trial(8)) == (loss, None)


def test_a_trial_is_told_from_its_start_to_its_one_ending(bench):
    executor = bench.executor()
    assert executor.active == ()
    assert executor.has_room
    assert executor.accepts(trial())
    executor.start(Work(3, trial()))
    assert executor.active == (3,)
    events = drain(executor)
    assert {event.number for event in events} == {3}
    assert isinstance(events[0], Started)
    assert events[0].engine == "packed"
    assert events[0].reason
    assert [type(event) for event in events if isinstance(event, ENDINGS)] == [Finished]
    assert isinstance(events[-1], Finished)
    assert [event.step for event in events] == sorted(event.step for event in events)
    assert list(curve(events)) == [1, 2, 3]
    assert events[-1].metrics["eval_loss"] == curve(events)[3]
    assert {"steps", "trainable_params", "train_seconds", "peak_memory_bytes"} <= events[-1].metrics.keys()
    assert executor.active == ()


def test_files_are_there_before_the_event_that_speaks_of_them(bench):
    executor = bench.executor()
    executor.start(Work(3, trial()))
    while executor.active:
        for event in executor.wait(1.0):
            if isinstance(event, Finished):
                assert (bench.folder / "0003" / "adapter" / "adapter_config.json").is_file()


def test_trials_train_side_by_side_and_none_notices_the_other(bench):
    alone = bench.executor(pack_size=1)
    alone.start(Work(0, trial(4)))
    assert not alone.has_room
    assert not alone.accepts(trial(8))
    expected = curve(drain(alone))
    together = bench.executor()
    together.start(Work(1, trial(4)))
    assert together.accepts(trial(8))
    together.start(Work(2, trial(8)))
    assert set(together.active) == {1, 2}
    assert not together.has_room
    events = drain(together)
    assert curve(of(events, 1)) == pytest.approx(expected, abs=1e-5)
    assert curve(of(events, 2)).keys() == expected.keys()


def test_with_no_time_it_tells_what_it_knows_and_trains_nothing(bench):
    executor = bench.executor()
    assert executor.wait(0.0) == []
    executor.start(Work(0, trial()))
    assert all(type(event) is Started for event in executor.wait(0.0))
    assert executor.wait(0.0) == []
    assert executor.active == (0,)


def test_nothing_is_told_of_a_trial_that_was_stopped(bench):
    executor = bench.executor()
    for number in (0, 1):
        executor.start(Work(number, trial()))
    executor.wait(0.0)
    executor.wait(1.0)
    executor.stop(0)
    assert executor.active == (1,)
    assert executor.has_room
    events = drain(executor)
    assert not of(events, 0)
    assert isinstance(events[-1], Finished)


def test_a_trial_can_be_stopped_before_its_start_was_told(bench):
    executor = bench.executor()
    executor.start(Work(0, trial()))
    executor.stop(0)
    assert executor.active == ()
    assert executor.wait(0.0) == []


def test_what_is_wrong_with_one_trial_is_told_as_its_failure(bench):
    (bench.folder / "0000" / "checkpoint").mkdir(parents=True)
    (bench.folder / "0000" / "checkpoint" / "manifest.json").write_text("{}")
    executor = bench.executor()
    executor.start(Work(0, trial()))
    executor.start(Work(1, trial()))
    events = drain(executor)
    started, failed = of(events, 0)
    assert isinstance(started, Started)
    assert isinstance(failed, Failed)
    assert str(bench.folder / "0000" / "checkpoint") in failed.reason
    assert isinstance(of(events, 1)[-1], Finished)


def test_a_trial_that_does_not_fit_is_told_as_out_of_memory(bench):
    executor = bench.tight()
    executor.start(Work(0, trial()))
    started, ending = drain(executor)
    assert isinstance(started, Started)
    assert isinstance(ending, OutOfMemory)
    assert "even alone" in ending.reason
    assert executor.active == ()
    assert executor.has_room


@pytest.mark.parametrize("rounds", [1, 3])
def test_closed_with_saving_a_trial_goes_on_where_it_was(bench, rounds):
    whole = bench.executor()
    whole.start(Work(0, trial()))
    expected = drain(whole)
    executor = bench.executor()
    executor.start(Work(1, trial()))
    told = executor.wait(0.0)
    for _ in range(rounds):
        told += executor.wait(1.0)
    if executor.active:
        executor.close(save=True)
        executor.close(save=False)
        assert executor.active == ()
        again = bench.executor()
        again.start(Work(1, trial()))
        told += [event for event in drain(again) if not isinstance(event, Started)]
    kinds = (Logged, Evaluated)
    assert [replace(one, number=0) for one in told if isinstance(one, kinds)] == [
        one for one in expected if isinstance(one, kinds)
    ]
    assert told[-1].metrics["eval_loss"] == expected[-1].metrics["eval_loss"]


def test_killed_it_tells_again_what_came_after_the_checkpoint_with_the_same_values(bench):
    whole = bench.executor()
    whole.start(Work(0, trial()))
    expected = drain(whole)
    first = bench.executor()
    first.start(Work(1, trial()))
    before = first.wait(0.0) + first.wait(1.0)
    first.close(save=True)
    killed = bench.executor()
    killed.start(Work(1, trial()))
    lost = killed.wait(0.0) + killed.wait(1.0)
    again = bench.executor()
    again.start(Work(1, trial()))
    after = drain(again)
    steps = {one.step: one.loss for one in expected if isinstance(one, Logged)}
    for told in (before, lost, after):
        assert {one.step: one.loss for one in told if isinstance(one, Logged)}.items() <= steps.items()
    assert min(one.step for one in lost if isinstance(one, Logged)) > max(one.step for one in before)
    assert min(one.step for one in after if isinstance(one, Logged)) > max(one.step for one in before)
    assert curve(before) | curve(after) == curve(expected)


def test_shorter_runs_are_read_off_at_their_milestones(bench):
    executor = bench.executor()
    executor.start(Work(0, trial(), (trial(epochs=1), trial(epochs=2))))
    events = drain(executor)
    milestones = [event for event in events if isinstance(event, Milestone)]
    assert [(one.epochs, one.evaluation, one.is_branch) for one in milestones] == [(1, 1, False), (2, 2, False)]
    for one in milestones:
        assert one.metrics["eval_loss"] == curve(events)[one.epochs]
        before = events[: events.index(one)]
        assert any(isinstance(event, Evaluated) and event.step == one.step for event in before)
        files = TrialFolder.of(bench.folder, 0).shorter_run(one.epochs)
        assert (files.adapter / "adapter_config.json").is_file()


BEST = {"load_best_model_at_end": True, "early_stopping_patience": 1, "early_stopping_threshold": 10.0}
"""No evaluation is so much better than the first, so the second is the last."""


def test_a_trial_that_stops_early_leaves_its_best_adapter_and_its_place(bench):
    executor = bench.executor()
    executor.start(Work(0, trial(epochs=4, **BEST), tuple(trial(epochs=n, **BEST) for n in (1, 2, 3))))
    executor.start(Work(1, trial(8)))
    events, room = [], []
    while executor.active:
        events += executor.wait(1.0)
        room.append((0 in executor.active, executor.has_room))
    assert all(has_room for is_active, has_room in room if not is_active)
    mine = of(events, 0)
    final, losses = mine[-1], curve(mine)
    assert isinstance(final, Finished)
    assert "stopped early at evaluation 2" in final.reason
    assert list(losses) == [1, 2]
    assert final.metrics["eval_loss"] == min(losses.values())
    assert losses[final.metrics["best_evaluation"]] == min(losses.values())
    assert (TrialFolder.of(bench.folder, 0).adapter / "adapter_config.json").is_file()

    milestones = {event.epochs: event for event in mine if isinstance(event, Milestone)}
    assert list(milestones) == [1, 2, 3]
    assert {epochs: one.evaluation for epochs, one in milestones.items()} == {1: 1, 2: 2, 3: 2}
    assert milestones[1].metrics["eval_loss"] == losses[1]
    assert milestones[3].metrics == milestones[2].metrics == final.metrics
    assert ["stopped early" in one.reason for one in milestones.values()] == [False, False, True]
    files = TrialFolder.of(bench.folder, 0).shorter_run(3)
    assert (files.adapter / "adapter_config.json").is_file()

    neighbor = of(events, 1)
    assert isinstance(neighbor[-1], Finished)
    assert list(curve(neighbor)) == [1, 2, 3]


def test_a_trial_that_stops_early_does_so_after_a_kill_too(bench):
    config = trial(epochs=4, **BEST)
    whole = bench.executor()
    whole.start(Work(0, config))
    expected = drain(whole)[-1]
    first = bench.executor()
    first.start(Work(1, config))
    while not curve(first.wait(1.0)):
        pass
    first.close(save=True)
    again = bench.executor()
    again.start(Work(1, config))
    final = drain(again)[-1]
    assert isinstance(final, Finished)
    assert (final.step, final.reason) == (expected.step, expected.reason)
    assert final.metrics["eval_loss"] == expected.metrics["eval_loss"]


def test_a_branch_goes_on_from_its_milestone(bench):
    decay = {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.5}
    executor = bench.executor()
    executor.start(Work(0, trial(**decay), (trial(epochs=2, **decay),)))
    events = drain(executor)
    [milestone] = [event for event in events if isinstance(event, Milestone)]
    assert milestone.is_branch
    TrialFolder.of(bench.folder, 0).shorter_run(2).path.rename(TrialFolder.of(bench.folder, 1).path)
    executor.start(Work(1, trial(epochs=2, **decay)))
    rest = [event for event in drain(executor) if not isinstance(event, Started)]
    assert rest[0].step > milestone.step
    assert isinstance(rest[-1], Finished)
    assert max(curve(rest)) == 2


def test_closing_ends_all_trials(bench):
    executor = bench.executor()
    executor.start(Work(0, trial()))
    executor.close(save=False)
    assert executor.active == ()
