"""A study that maximizes a score, from its settings over pruning and retraining to the report and MLflow's points."""

from __future__ import annotations

import io
import math

import pytest
from runner.scripted import BASE_LOSS, loss, run, spec, store_of
from runner.scripted import results as results_of

from lora_lab.common.errors import StorageError
from lora_lab.results.folder import RunFolder
from lora_lab.results.gather import gather
from lora_lab.results.results import read_results
from lora_lab.runner.scripted import Script, ScriptedExecutor
from lora_lab.study.events import Evaluated
from lora_lab.terminal.closing import say_results
from lora_lab.terminal.messages import StudyBegan, TrialOver
from lora_lab.terminal.progress import StudyProgress
from lora_lab.tracking.journal import read

BASE_ACCURACY = 0.3


def score(config):
    """The lower the rank, the better: the opposite of what eval_loss says here."""
    return 0.9 - 0.02 * config.lora.r - 10 * config.training.learning_rate + 0.0001 * config.training.seed


class Scored(Script):
    """Trials that have an accuracy at every evaluation."""

    def costs(self, config):
        return {**super().costs(config), "accuracy": score(config)}


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


@pytest.fixture(autouse=True)
def _measured(accuracy):
    """The table of measures has it."""


def study(**sweep):
    return spec(metric="accuracy", **sweep)


def finished(folder, sweep_study, *, pack_size=2):
    """What the display said; the store holds the trials."""
    told = io.StringIO()
    store_of(folder, sweep_study).record.keep_base_values({"eval_loss": BASE_LOSS, "accuracy": BASE_ACCURACY})
    complete, _ = run(folder, sweep_study, told, trainer=ScriptedExecutor(folder.trials, pack_size, Scored()))
    assert complete
    return told.getvalue()


def test_the_best_is_the_highest_and_the_display_says_so(folder):
    said = finished(folder, study())
    progress = StudyProgress()
    progress.take(StudyBegan("x", 4, None, measure=study().sweep.judged))
    for number, value in enumerate((0.7, 0.85, math.nan, 0.8)):
        progress.take(TrialOver(number, "complete", value))

    assert "complete, accuracy 0.850" in said
    assert "best single run so far trial 1: accuracy 0.850" in progress.summary()


def test_pruning_keeps_the_high_scores(folder):
    pruned = study(pruner="asha", parameters={"r": {"values": [2, 4, 8, 10, 12, 36, 38, 40]}})
    finished(folder, pruned, pack_size=8)

    trials = {one.config.lora.r: one for one in results_of(folder, pruned).values()}
    assert {r for r, one in trials.items() if one.state == "pruned"} >= {36, 38, 40}
    assert trials[2].state == "complete"
    assert trials[40].metrics["accuracy"] == pytest.approx(score(trials[40].config))
    assert trials[40].curve[1] == loss(trials[40].config, 1)


def test_the_median_pruner_compares_scores_too(folder):
    sweep_study = study(pruner="median")
    with store_of(folder, sweep_study) as store:
        for value in (0.7, 0.71, 0.72, 0.73, 0.74):
            number = store.ask().number
            store.report(number, 1, 3.0, {"accuracy": value})
            store.finish(number, {"eval_loss": 3.0, "accuracy": value})
        number = store.ask().number
        store.report(number, 1, 2.0, {"accuracy": 0.5})
        assert store.should_prune(number)
        assert store.result(number).curve == {1: 2.0}


def test_retrainings_and_the_report_follow_the_score(folder):
    sweep_study = study(confirm={"top": 2, "seeds": 2}, verdict={"absolute_margin": 0.05})
    finished(folder, sweep_study)
    results = read_results(sweep_study, store_of(folder, sweep_study), folder)

    findings = results.findings
    assert findings.best is not None
    assert findings.best.config.lora.r == 2
    assert findings.measure.name == "accuracy"
    assert (findings.base_value, findings.margin) == (BASE_ACCURACY, 0.05)
    assert findings.best.value == pytest.approx(score(findings.best.config) + 0.00015, abs=1e-4)
    evidence = gather(results, folder, "python -m lora_lab.sweep x.yaml")
    assert {one.axes[0] for one in evidence.fronts} == {"accuracy"}
    assert [one.number for one in evidence.fronts[0].members if one.on_front] == [findings.best.number]


def test_a_program_is_told_the_score(folder, capsys):
    sweep_study = study()
    finished(folder, sweep_study)
    results = read_results(sweep_study, store_of(folder, sweep_study), folder)

    say_results(results, folder, "sqlite:///tracking.db", json=True, ran=True, next_steps={})

    said = capsys.readouterr().out
    assert '"metric": "accuracy", "base_value": 0.3' in said
    assert '"margin_points"' in said


def test_mlflow_gets_the_score_of_every_evaluation_and_no_cost(folder):
    from lora_lab.tracking.store import measurements

    finished(folder, study())

    evaluated = [entry.record for entry, _ in read(folder.root) if isinstance(entry.record, Evaluated)]
    points = measurements(evaluated[0])
    assert points.keys() == {"eval_loss", "perplexity", "accuracy"}
    assert points["accuracy"] == evaluated[0].costs["accuracy"]


@pytest.mark.parametrize("value", [math.nan, 1.2, -0.1])
def test_what_no_score_can_be_has_diverged(folder, value):
    sweep_study = study()
    with store_of(folder, sweep_study) as store:
        asked = store.ask()
        store.finish(asked.number, {"accuracy": value, "eval_loss": 3.0})
        assert store.result(asked.number).state == "diverged"
        assert store.result(asked.number).reason == f"accuracy is {value} at the end"


def test_a_score_that_no_evaluation_has_prunes_nobody(folder):
    sweep_study = study(pruner="asha")
    with store_of(folder, sweep_study) as store:
        numbers = [store.ask().number for _ in range(4)]
        for number in numbers:
            store.report(number, 1, 3.0 + number)
        assert not any(store.should_prune(number) for number in numbers)
        assert store.result(0).curve == {1: 3.0}


def test_without_the_score_of_the_base_there_is_no_verdict_and_it_is_said(folder):
    with pytest.raises(StorageError, match=r"judges accuracy.* bare base \(eval_loss was\).*--fresh"):
        run(folder, study(), io.StringIO())
