"""Runs of fewer epochs inside longer ones, with trials that are arithmetic: who is trained, who is told, and when."""

from __future__ import annotations

import io
import json
import re
from collections import Counter

import pytest
from runner.scripted import BASE_LOSS, Countdown, Killed, journaled_ends, loss, results, run, spec

from lora_lab.results.folder import RunFolder
from lora_lab.runner.choosable import Choosable
from lora_lab.runner.finalists import finalists
from lora_lab.runner.scripted import STEPS_PER_EPOCH, Script, ScriptedExecutor
from lora_lab.study.events import Evaluated
from lora_lab.study.sweep import Verdict
from lora_lab.terminal.messages import StudyBegan, TrialOver
from lora_lab.terminal.progress import StudyProgress
from lora_lab.tracking.journal import read
from lora_lab.tracking.records import TrialEnded, TrialStarted

EPOCHS = {"num_train_epochs": {"values": [1, 2, 3]}}
RANKS = {"r": {"values": [2, 4]}}
DECAY = {"lr_scheduler_type": "warmup_stable_decay"}
ADAPTIVE = {
    "sampler": "random",
    "n_trials": 10,
    "parameters": {**EPOCHS, "r": {"min": 2, "max": 64}, "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True}},
}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "scripted")


@pytest.fixture
def told():
    return io.StringIO()


def grid(training=None, **sweep):
    return spec(training, **({"parameters": {**EPOCHS, **RANKS}} | sweep))


KEPT = {"load_best_model_at_end": True, "early_stopping_patience": 1}


def valley(config, epoch):
    """eval_loss that rises again after the second epoch, later for rank 8."""
    lowest = 3 if config.lora.r == 8 else 2
    return 3.0 + 0.1 * abs(epoch - lowest) - 0.001 * config.lora.r + 0.0001 * config.training.seed


def in_a_valley(folder, study, told, countdown=None, pack_size=2):
    trainer = ScriptedExecutor(folder.trials, pack_size, Script(loss=valley))
    return run(folder, study, told, countdown, trainer=trainer)


def stopping(training=None, **sweep):
    epochs = {"num_train_epochs": {"values": [1, 2, 3, 4, 6]}}
    return spec(KEPT | (training or {}), **({"parameters": {**epochs, "r": {"values": [4, 8]}}} | sweep))


def adapter_of(folder, result):
    """What the adapter that would be chosen for a trial says it is of; None where it was dropped."""
    path = folder.adapter_of(result) / "adapter_config.json"
    if not path.is_file():
        return None
    of = json.loads(path.read_text())
    return of["r"], of["num_train_epochs"]


def check(folder, study):
    """Storage, journal and files agree: every value and every adapter is that of the configuration it stands beside."""
    found = results(folder, study)
    assert journaled_ends(folder) == [(number, one.state) for number, one in sorted(found.items())]
    assert not list(folder.root.rglob("checkpoint"))
    assert not list(folder.root.rglob("epochs-*"))
    for one in found.values():
        epochs = one.config.training.num_train_epochs
        if one.has_value:
            assert one.eval_loss == loss(one.config, epochs)
            assert one.metrics["steps"] == STEPS_PER_EPOCH * epochs
            assert list(one.curve) == list(range(1, epochs + 1))
            assert adapter_of(folder, one) in (None, (one.config.lora.r, epochs))
        assert (one.source is None) == (one.state != "shared") or one.reason.startswith("as trial")
    return found


def by_config(found):
    return {(one.config.lora.r, one.config.training.num_train_epochs): one for one in found.values()}


@pytest.mark.parametrize("pack_size", [1, 2, 8])
def test_of_a_grid_only_the_longest_runs_are_trained(folder, told, pack_size):
    study = grid()
    complete, executor = run(folder, study, told, pack_size=pack_size)
    assert complete
    found = check(folder, study)
    assert len(found) == 6
    assert Counter(one.state for one in found.values()) == {"complete": 2, "shared": 4}
    assert len(executor.trained_epochs) == 6
    for (rank, epochs), one in by_config(found).items():
        assert one.source == (None if epochs == 3 else by_config(found)[rank, 3].number)


def test_the_user_is_told_whose_outcome_it_is(folder, told):
    run(folder, grid(), told)
    assert re.search(r"trial \d is trial \d after 1 epoch: eval_loss", told.getvalue())
    assert "4 read off another trial" in told.getvalue() or "[6/6]" in told.getvalue()


def test_both_engines_give_what_they_contain(folder, told):
    study = grid(parameters={**EPOCHS, "use_dora": {"values": [False, True]}})
    _, executor = run(folder, study, told)
    assert Counter(one.state for one in check(folder, study).values()) == {"complete": 2, "shared": 4}
    assert len(executor.trained_epochs) == 6


def test_the_best_so_far_may_be_one_that_was_read_off():
    progress = StudyProgress()
    progress.take(StudyBegan("x", 2, None))
    progress.take(TrialOver(1, "shared", 2.0, "trial 0 after 1 epoch"))
    assert progress.best == (2.0, 1, "trial 0 after 1 epoch")


def test_the_journal_has_a_run_with_its_curve_for_each(folder, told):
    study = grid()
    run(folder, study, told)
    records = [entry.record for entry, _ in read(folder.root)]
    for number, one in results(folder, study).items():
        [started] = [record for record in records if isinstance(record, TrialStarted) and record.number == number]
        assert started.tags.get("shares") == (None if one.source is None else str(one.source))
        curve = [record for record in records if isinstance(record, Evaluated) and record.number == number]
        assert [(record.step, record.eval_loss) for record in curve] == [
            (STEPS_PER_EPOCH * epoch, value) for epoch, value in one.curve.items()
        ]


@pytest.mark.parametrize("training", [{"lr_scheduler_type": "linear"}, {"lr_scheduler_type": "cosine"}], ids=str)
def test_where_the_rate_knows_the_length_all_are_trained(folder, told, training):
    study = grid(training)
    _, executor = run(folder, study, told)
    assert {one.state for one in check(folder, study).values()} == {"complete"}
    assert len(executor.trained_epochs) == 2 * (1 + 2 + 3)


@pytest.mark.parametrize("pack_size", [1, 4])
def test_under_a_decay_shorter_runs_branch_off(folder, told, pack_size):
    """The scripted decay is the last epoch: a run of 1 shares nothing, one of 2 its first epoch."""
    study = grid(DECAY)
    complete, executor = run(folder, study, told, pack_size=pack_size)
    assert complete
    found = check(folder, study)
    assert {one.state for one in found.values()} == {"complete"}
    assert len(executor.trained_epochs) == 2 * (3 + 1 + 1)
    records = [entry.record for entry, _ in read(folder.root)]
    branched = {
        record.number: record.tags["branched_from"]
        for record in records
        if isinstance(record, TrialStarted) and "branched_from" in record.tags
    }
    of = by_config(found)
    assert branched == {of[rank, 2].number: str(of[rank, 3].number) for rank in (2, 4)}


@pytest.mark.parametrize("pack_size", [1, 3, 4, 12])
def test_a_pruned_trial_gives_what_it_has_and_takes_the_rest_with_it(folder, told, pack_size):
    study = grid(pruner="asha", parameters={**EPOCHS, "r": {"values": [2, 4, 8, 16]}})
    run(folder, study, told, pack_size=pack_size)
    found = check(folder, study)
    of = by_config(found)
    assert len(of) == 12
    assert of[16, 3].state == "complete"
    assert all(of[rank, 1].state == "shared" for rank in (2, 4, 8, 16))
    pruned = [one for one in found.values() if one.state == "pruned"]
    assert pruned
    for one in pruned:
        if one.source is not None:
            assert found[one.source].state == "pruned"
            assert one.reason == f"as trial {one.source}: {found[one.source].reason}"
            assert max(found[one.source].curve) < one.config.training.num_train_epochs


def test_asha_ranks_a_training_once(folder, told):
    """Of four in a pack two go on past the first rung: what is read off there is nobody's rival."""
    study = grid(pruner="asha", parameters={**EPOCHS, "r": {"values": [2, 4, 8, 16]}})
    run(folder, study, told, pack_size=12)
    curves = {one.config.lora.r: len(one.curve) for one in results(folder, study).values() if one.source is None}
    assert curves == {2: 1, 4: 1, 8: 2, 16: 3}


def test_a_trial_that_diverges_takes_its_shorter_ones_with_it(folder, told):
    study = grid()
    run(folder, study, told, diverging_rank=4)
    states = {key: one.state for key, one in by_config(check(folder, study)).items()}
    assert states == {
        (2, 1): "shared", (2, 2): "shared", (2, 3): "complete",
        (4, 1): "diverged", (4, 2): "diverged", (4, 3): "diverged",
    }  # fmt: skip


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "nsga2", "gp"])
def test_an_adaptive_search_learns_from_what_is_read_off(folder, told, sampler):
    study = spec(**ADAPTIVE | {"sampler": sampler})
    complete, executor = run(folder, study, told, pack_size=3)
    assert complete
    found = check(folder, study)
    assert len(found) == 10
    trained = [one for one in found.values() if one.source is None]
    assert len(executor.trained_epochs) == sum(one.config.training.num_train_epochs for one in trained)
    shared = [one for one in found.values() if one.source is not None]
    assert shared
    assert {one.state for one in shared} == {"shared"}
    for one in shared:
        source = found[one.source]
        assert one.params == source.params | {"num_train_epochs": one.config.training.num_train_epochs}
        assert one.config.training.num_train_epochs < source.config.training.num_train_epochs


@pytest.mark.parametrize("n_trials", range(1, 9))
def test_the_budget_is_never_exceeded(folder, told, n_trials):
    study = spec(**ADAPTIVE | {"n_trials": n_trials, "seed": n_trials})
    run(folder, study, told, pack_size=3)
    assert len(check(folder, study)) == n_trials


def test_trials_in_work_hold_a_place_for_what_they_will_give(folder, told):
    parameters = ADAPTIVE["parameters"] | {"r": {"values": [8]}}
    study = spec(**ADAPTIVE | {"n_trials": 9, "parameters": parameters})
    run(folder, study, told, pack_size=9)
    found = check(folder, study)
    asked = [one for one in found.values() if one.source is None]
    assert sum(one.config.training.num_train_epochs for one in asked) >= 9
    assert len(found) == 9


def test_pruned_trials_give_their_places_back(folder, told):
    study = spec(**ADAPTIVE | {"pruner": "asha", "n_trials": 12})
    run(folder, study, told, pack_size=4)
    found = check(folder, study)
    assert len(found) == 12
    assert "pruned" in {one.state for one in found.values()}


def test_only_configurations_that_the_study_may_ask_for_are_added(folder, told):
    """Under 2 epochs and more another parameter is searched, so a run of 1 is another configuration."""
    parameters = {
        "num_train_epochs": {"values": [1, 3, 4]},
        "lora_dropout": {"values": [0.0, 0.1], "when": {"num_train_epochs": {"min": 2}}},
    }
    study = spec(parameters=parameters)
    _, executor = run(folder, study, told)
    found = check(folder, study)
    assert Counter(one.state for one in found.values()) == {"complete": 3, "shared": 2}
    assert len(executor.trained_epochs) == 1 + 4 + 4


def test_equivalent_and_contained_at_once(folder, told):
    targets = {"target_modules": {"values": ["attention", ["q_proj", "v_proj"]]}}
    study = grid(parameters={**EPOCHS, **targets})
    _, executor = run(folder, study, told, pack_size=4)
    found = check(folder, study)
    assert Counter(one.state for one in found.values()) == {"complete": 1, "shared": 5}
    assert len(executor.trained_epochs) == 3


def test_equivalent_under_a_decay_shares_the_branch(folder, told):
    targets = {"target_modules": {"values": ["attention", ["q_proj", "v_proj"]]}}
    study = grid(DECAY, parameters={"num_train_epochs": {"values": [2, 3]}, **targets})
    _, executor = run(folder, study, told, pack_size=4)
    found = check(folder, study)
    assert Counter(one.state for one in found.values()) == {"complete": 2, "shared": 2}
    assert len(executor.trained_epochs) == 4


def test_what_was_read_off_can_be_confirmed(folder, told):
    """It is then trained, to its own number of epochs."""
    study = grid(confirm={"top": 2, "seeds": 2}, parameters={**EPOCHS, "r": {"values": [4]}})
    run(folder, study, told)
    found = check(folder, study)
    repeats = [one for one in found.values() if one.replicate]
    best = sorted((one.eval_loss, one.number) for one in found.values() if not one.replicate)[:2]
    assert sorted((one.confirms, one.replicate) for one in repeats) == sorted((n, r) for _, n in best for r in (1, 2))
    assert sorted(found[one.confirms].state for one in repeats) == ["complete"] * 2 + ["shared"] * 2
    assert {one.state for one in repeats} == {"complete"}
    assert all(one.source is None for one in repeats)
    for one in repeats:
        assert one.config.training.num_train_epochs == found[one.confirms].config.training.num_train_epochs


def test_a_finalist_is_one_training(folder, told):
    study = grid(parameters={**EPOCHS, "target_modules": {"values": ["attention", ["q_proj", "v_proj"]]}})
    run(folder, study, told)
    found = list(results(folder, study).values())
    verdict = Verdict(margin=0.0)
    chosen = finalists(
        found, lambda config: f"{config.training.num_train_epochs}", top=5, base_value=BASE_LOSS, verdict=verdict
    )
    assert [one.config.training.num_train_epochs for one in chosen] == [3, 2, 1]


def test_adapters_of_read_off_trials_are_kept_while_they_may_be_chosen(folder, told):
    study = grid(parameters={**EPOCHS, "r": {"values": [2, 4, 8, 16, 32]}}, verdict={"margin": 0.2})
    run(folder, study, told, pack_size=1)
    found = check(folder, study)
    choosable = Choosable(BASE_LOSS, study.sweep.verdict)
    for one in found.values():
        choosable.add(one)
    dropped = set(choosable.take_out())
    assert {number for number, one in found.items() if adapter_of(folder, one) is None} == dropped
    kept = [one for one in found.values() if one.number not in dropped]
    assert any(one.state == "shared" for one in kept)
    assert len(dropped) > 3


@pytest.mark.parametrize("pack_size", [1, 3])
def test_a_run_that_stops_early_gives_all_of_its_shorter_ones(folder, told, pack_size):
    study = stopping()
    complete, executor = in_a_valley(folder, study, told, pack_size=pack_size)
    assert complete
    found = results(folder, study)
    assert sorted(executor.trained_epochs) == sorted(
        (number, epoch)
        for number, one in found.items()
        if one.source is None
        for epoch in range(1, 5 if one.config.lora.r == 8 else 4)
    )
    of = by_config(found)
    assert len(of) == 10
    for (rank, epochs), one in of.items():
        lowest = 3 if rank == 8 else 2
        trained = min(epochs, lowest + 1)
        best = min(trained, lowest)
        assert one.state == ("complete" if epochs == 6 else "shared")
        assert one.eval_loss == valley(one.config, best)
        assert one.metrics["best_evaluation"] == one.evaluation == best
        assert one.metrics["epochs"] == trained == max(one.curve)
        assert ("stopped early" in one.reason) == (epochs > trained)
        assert adapter_of(folder, one) in (None, (rank, epochs))
    said = told.getvalue()
    assert "stopped early at evaluation 3 (step 12): 1 evaluation without a better eval_loss" in said
    assert "its adapter is that of evaluation 2 (step 8), the best by eval_loss" in said
    assert re.search(r"trial \d is trial \d, which stopped early after 3 of 4 epochs: eval_loss", said)
    assert journaled_ends(folder) == [(number, one.state) for number, one in sorted(found.items())]
    records = [entry.record for entry, _ in read(folder.root)]
    for number, one in found.items():
        told_curve = [record for record in records if isinstance(record, Evaluated) and record.number == number]
        assert {record.evaluation: record.eval_loss for record in told_curve} == one.curve
        assert [record.step for record in told_curve] == [STEPS_PER_EPOCH * epoch for epoch in one.curve]


def test_what_a_trial_ends_with_is_journaled_later_than_its_curve(folder, told):
    """Both stand at its last step, where MLflow shows the later one as the trial's value."""
    study = stopping()
    in_a_valley(folder, study, told)
    entries = [entry for entry, _ in read(folder.root)]
    for number, one in results(folder, study).items():
        curve = [entry.at_ms for entry in entries if type(entry.record) is Evaluated and entry.record.number == number]
        [end] = [entry for entry in entries if type(entry.record) is TrialEnded and entry.record.number == number]
        assert max(curve) < end.at_ms
        assert end.record.metrics["eval_loss"] == one.eval_loss <= one.curve[max(one.curve)]


def test_what_stopped_early_is_confirmed_as_it_was_trained(folder, told):
    study = stopping(confirm={"top": 2, "seeds": 2}, parameters={"r": {"values": [2, 4]}, **EPOCHS})
    assert in_a_valley(folder, study, told)[0]
    repeats = [one for one in results(folder, study).values() if one.replicate]
    assert repeats
    for one in repeats:
        assert one.state == "complete"
        assert one.eval_loss == valley(one.config, one.evaluation)
        assert one.evaluation == min(2, one.config.training.num_train_epochs)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("training", [None, DECAY], ids=["constant", "decay"])
@pytest.mark.parametrize("stride", [83, pytest.param(1, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_killed_at_any_call_early_stopping_loses_and_doubles_nothing(tmp_path, told, training, after, stride):
    study = stopping(training)
    control = RunFolder(tmp_path / "control")
    in_a_valley(control, study, told)
    expected = outcomes(results(control, study))
    calls = 0 if stride == 1 else 5
    while True:
        folder = RunFolder(tmp_path / f"killed-{calls}")
        try:
            in_a_valley(folder, study, told, Countdown(calls, after))
        except Killed:
            assert in_a_valley(folder, study, told)[0]
            found = results(folder, study)
            assert outcomes(found) == expected
            assert journaled_ends(folder) == [(number, one.state) for number, one in sorted(found.items())]
            assert not list(folder.root.rglob("checkpoint"))
            assert not list(folder.root.rglob("epochs-*"))
        else:
            assert calls > 30
            return
        calls += stride


def test_the_json_display_tells_milestones():
    from lora_lab.study.events import Milestone
    from lora_lab.terminal.display import Display, JsonView

    stream = io.StringIO()
    display = Display(JsonView(stream))
    display.tell(StudyBegan("x", 1, None))
    display.tell(Milestone(number=0, step=4, epoch=1.0, epochs=1, evaluation=1, metrics={"eval_loss": 2.0}))
    assert json.loads(stream.getvalue().splitlines()[1])["event"] == "milestone"


STUDIES = {
    "grid": grid(),
    "grid-in-a-small-pack": grid(parameters={**EPOCHS, "r": {"values": [2]}}),
    "pruned": grid(pruner="asha"),
    "decay": grid(DECAY, parameters={"num_train_epochs": {"values": [2, 3]}, **RANKS}),
    "random": spec(**ADAPTIVE | {"n_trials": 6}),
    "random-decay": spec(DECAY, **ADAPTIVE | {"n_trials": 5, "pruner": "asha"}),
    "confirmed": grid(parameters={**EPOCHS, "r": {"values": [2]}}, confirm={"top": 2, "seeds": 1}),
}
EVERY = 29


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("stride", [EVERY, pytest.param(1, marks=[pytest.mark.faults, pytest.mark.timeout(1800)])])
def test_killed_at_any_call_nothing_is_lost_or_doubled(tmp_path, told, name, after, stride):
    study = STUDIES[name]
    pack_size = 1 if name == "grid-in-a-small-pack" else 2
    control = RunFolder(tmp_path / "control")
    run(control, study, told, pack_size=pack_size)
    expected = outcomes(check(control, study))
    calls = 0 if stride == 1 else 5
    while True:
        folder = RunFolder(tmp_path / f"killed-{calls}")
        try:
            run(folder, study, told, Countdown(calls, after), pack_size=pack_size)
        except Killed:
            before = {n: one for n, one in results(folder, study).items() if one.state != "running"}
        else:
            assert calls > 30
            return
        complete, executor = run(folder, study, told, pack_size=pack_size)
        assert complete
        found = check(folder, study)
        assert {number: found[number] for number in before} == before
        assert not {number for number, _ in executor.trained_epochs} & before.keys()
        configs = [one.config for one in found.values()]
        assert len(configs) == len({config.model_dump_json() for config in configs})
        if name.startswith("random"):  # which numbers trials have, and so their values, depends on when the kill came
            assert len(found) == study.sweep.n_trials
        elif name != "pruned":  # there it depends on it which trials meet on a rung
            assert outcomes(found) == expected
        calls += stride


def outcomes(found):
    """How each configuration ended; which number it has depends on who came first to where it ends."""
    return {one.config.model_dump_json(): (one.state, one.metrics, one.curve) for one in found.values()}
