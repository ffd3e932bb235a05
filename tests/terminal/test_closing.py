"""What is printed at the end of a study: one best, the next steps, and nothing that does not apply."""

from __future__ import annotations

import json

import pytest
from analysis.simulated import study, trial

from lora_lab.analysis.audit import audit, unfinished
from lora_lab.analysis.verdict import decide
from lora_lab.results.folder import RunFolder
from lora_lab.results.results import Results
from lora_lab.terminal.closing import say_results

NEXT = {"MLflow": "python -m lora_lab.ui x.yaml", "export": "python -m lora_lab.export x.yaml --to all"}
BASE = {"eval_loss": 5.0, "forgetting_loss": 3.0}


@pytest.fixture
def closing(tmp_path, capsys):
    """What is said of such trials."""

    def said(*trials, notes=(), json=False, ran=True):
        spec = study(confirm=None)
        findings = decide(trials, BASE["eval_loss"], 0.05)
        results = Results(spec, trials, findings, {}, [*notes, *audit(spec, findings, trials)], BASE)
        say_results(results, RunFolder(tmp_path), "sqlite:///x.db", json=json, ran=ran, next_steps=NEXT)
        return capsys.readouterr().out

    return said


FINISHED = [trial(0, 4.0, r=64), trial(1, 4.02, r=4), trial(2, 4.5, r=2)]


def test_a_verdict_ends_with_its_next_steps(closing):
    said = closing(*FINISHED)
    assert [line.split(" ")[0] for line in said.splitlines()[-4:]] == ["report", "recommended", "MLflow", "export"]
    assert said.count("Best: trial 0") == 1
    assert "best single run" not in said


def test_without_a_finished_trial_nothing_is_exported_and_no_design_is_discussed(closing):
    said = closing(trial(0, state="diverged"), trial(1, state="failed"), notes=[unfinished(2, 4)])
    assert "No trial finished, so there is no verdict." in said
    assert "lora_lab.export" not in said
    assert "The study is not finished" in said
    assert said.count("  - ") == 4


def test_rows_that_chose_nothing_are_part_of_the_verdict(closing):
    trials = [trial(0, 4.0, metrics={"test_eval_loss": 4.25}), trial(1, 4.4, r=4, metrics={"test_eval_loss": 4.5})]
    told = "eval_loss on rows that chose nothing (data.test): trial 0, the best, has 4.2500 nats per token (4.0000 on"
    assert told in " ".join(closing(*trials).split())
    assert json.loads(closing(*trials, json=True))["sentences"][-1].startswith(told)


def test_what_the_verdict_says_is_not_said_again(closing):
    said = closing(*FINISHED)
    assert said.count("`seeds: 3` repeats every cell of a grid") == 1


@pytest.mark.parametrize(("value", "words"), [(0.2, "0.2000 nats of forgetting"), (-0.07, "no forgetting")])
def test_forgetting_is_part_of_the_verdict_where_it_was_measured(closing, value, words):
    said = closing(trial(0, 4.0, metrics={"forgetting": value}), trial(1, 4.4, r=4, metrics={"forgetting": value}))
    verdict = said[said.index("Verdict") : said.index("\n\n", said.index("Verdict"))]
    assert words in verdict
    assert "general text" not in closing(*FINISHED)


def test_programs_are_told_the_same_best(closing):
    told = json.loads(closing(*FINISHED, json=True))
    assert (told["best"], told["best_value"], told["recommended"]) == (0, 4.0, 1)
