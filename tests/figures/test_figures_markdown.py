from __future__ import annotations

from analysis.simulated import BASE_LOSS, results, study, trial

from lora_lab.analysis.audit import audit
from lora_lab.analysis.verdict import decide
from lora_lab.figures.markdown import markdown_summary
from lora_lab.study.spec import StudySpec


def test_the_summary_holds_question_verdict_caveats_and_the_best_trials() -> None:
    trials, spec = results(), study()
    findings = decide(trials, BASE_LOSS, margin=0.01)

    text = markdown_summary(spec, trials, findings, audit(spec, findings), top=3)

    assert text.startswith("# How do rank and alpha trade off against loss, memory and trainable parameters?\n")
    assert "- Best: trial 25 (r=128" in text
    assert "## Read with care" in text
    assert text.count("\n| ") == 4
    losses = [float(line.split("|")[2]) for line in text.splitlines() if line.startswith("| ") and "e-" in line]
    assert losses == sorted(losses)


def test_hostile_text_is_no_markup() -> None:
    hostile = "a|b <img src=x> [x](http://evil.example) `c`\n# title"
    spec = StudySpec.model_validate({**study().model_dump(), "question": hostile})
    trials = [trial(0, 4.0, target_modules=hostile)]

    text = markdown_summary(spec, trials, decide(trials, BASE_LOSS, margin=0.01))

    assert text.splitlines()[0].startswith(r"# a\|b \<img src=x\> \[x\](http://evil.example) \`c\` \# title")
    (row,) = [line for line in text.splitlines() if line.startswith("| 0")]
    assert row.replace(r"\|", "").count("|") == 5


def test_without_trials_there_is_no_table() -> None:
    text = markdown_summary(study(), [], decide([], BASE_LOSS, margin=0.01))

    assert "No trial finished" in text
    assert "|" not in text
