"""A study that maximizes what trained models answer, on a real base: from the study file to the verdict and `best/`."""

from __future__ import annotations

import io
import json

import pytest
import yaml
from workshop import write_base

from lora_lab.common.errors import InputError
from lora_lab.results.folder import RunFolder
from lora_lab.results.storage import storage_url
from lora_lab.runner.options import RunOptions
from lora_lab.runner.session import run_study
from lora_lab.runner.stopping import StopRequest
from lora_lab.search.store import open_store
from lora_lab.study.events import Evaluated
from lora_lab.study.file.loading import load_study
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.terminal.display import Display, PlainView
from lora_lab.tracking.journal import read
from lora_lab.training.memory.room import DEFAULT_LIMIT

pytestmark = pytest.mark.slow

FACTS = 12


def write_facts(path):
    lines = [
        {"instruction": f"w{index} w{index + 1}", "output": f"w{40 + index}"}
        if path.stem.startswith("alpaca")
        else {"prompt": f"w{index} w{index + 1}", "completion": f"w{40 + index}"}
        for index in range(FACTS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def study(folder, **sections):
    parts = {
        "study_name": "facts",
        "model": {"model_name_or_path": str(folder / "base"), "dtype": "float32"},
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "asked.jsonl"), "max_length": 16},
        "training": {"per_device_train_batch_size": 4, "num_train_epochs": 10, "learning_rate": 2e-2, "eval_steps": 15},
        "evaluation": {"metrics": ["exact_match"], "max_new_tokens": 4},
        "sweep": {
            "metric": "exact_match",
            "sampler": "grid",
            "pruner": "none",
            "pack_size": 6,
            "seeds": 3,
            "parameters": {"r": {"values": [1, 8]}},
            "verdict": {"absolute_margin": 0.1},
        },
    }
    for name, changes in sections.items():
        parts[name] = {**parts[name], **changes}
    path = folder / "facts.yaml"
    path.write_text(yaml.safe_dump(parts, sort_keys=False))
    return load_study(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facts")
    write_base(folder / "base")
    for name in ("train", "asked", "alpaca", "unseen"):
        write_facts(folder / f"{name}.jsonl")
    (folder / "texts.jsonl").write_text('{"text": "w1 w2 w3"}\n' * 4)
    return folder


def run(folder, spec, name="runs"):
    told, run_folder = io.StringIO(), RunFolder.of(spec.study_name, folder / name)
    options = RunOptions(memory_limit=DEFAULT_LIMIT, tracking_uri="http://127.0.0.1:9")
    ended = run_study(
        spec, run_folder, "python -m lora_lab.sweep facts.yaml", options,
        display=Display(PlainView(told)), stop=StopRequest(),
    )  # fmt: skip
    return ended, run_folder, told.getvalue()


@pytest.fixture(scope="module")
def finished(place):
    return run(place, study(place))


def test_the_verdict_is_about_exact_match_over_seeds_and_examples(finished):
    ended, _, said = finished
    findings = ended.results.findings
    assert findings.measure.name == "exact_match"
    assert findings.margin == 0.1
    assert 0 <= findings.base_value < findings.best.value <= 1
    assert {row.evidence for row in findings.rows[1:]} <= {"seeds and examples"}
    assert len(ended.results.losses) == 6
    assert "exact match 0." in said or "exact match 1.000" in said


def test_every_trial_keeps_what_it_answered(finished):
    ended, folder, _ = finished
    for trial in ended.results.trials:
        last = max(trial.curve)
        rows = [json.loads(line) for line in folder.files_of(trial.number).predictions(last).read_text().splitlines()]
        assert len(rows) == FACTS
        assert sum(row["exact_match"] for row in rows) / FACTS == pytest.approx(trial.metrics["exact_match"])
        assert rows[2].keys() == {"place", "prompt", "reference", "prediction", "exact_match"}
        assert not folder.files_of(trial.number).predictions(last - 1).exists(), "only at the end"


def test_the_bare_base_keeps_its_answers_too(finished):
    _, folder, _ = finished
    path = TrialFolder.of_base(folder.trials).predictions(0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["reference"] for row in rows] == [f"w{40 + index}" for index in range(FACTS)]


def test_report_summary_and_best_say_it(finished):
    _, folder, _ = finished
    page = folder.report.read_text()
    assert "exact match" in page
    for title in ("Metrics of the finalists", "Answers side by side"):
        assert title in page
        assert title in folder.summary.read_text()
    assert "exact match" in folder.summary.read_text()
    kept = yaml.safe_load((folder.best / "config.yaml").read_text())
    assert kept["evaluation"]["metrics"] == ["exact_match"]
    card = (folder.best / "adapter" / "README.md").read_text()
    assert "Exact match on held-out data: " in card
    assert "metrics:" in card.partition("\n---\n")[0]
    assert "name: exact_match" in card


def test_the_journal_has_the_score_of_the_last_evaluation_for_mlflow(finished):
    _, folder, _ = finished
    evaluated = [entry.record for entry, _ in read(folder.root) if isinstance(entry.record, Evaluated)]
    assert [set(record.scores) for record in evaluated if record.number == 0] == [set(), {"exact_match"}]


def test_measured_at_evaluations_it_prunes(place):
    spec = study(
        place,
        evaluation={"at": "evaluations"},
        sweep={"pruner": "asha", "seeds": None, "parameters": {"r": {"values": [1, 2, 4, 8]}}, "pack_size": 4},
    )
    _, folder, said = run(place, spec, "pruned")
    with open_store(spec, storage_url(spec, folder), create=False) as store:
        results = store.results()
    assert "eval_loss" in said
    states = {result.state for result in results}
    assert states == {"complete", "pruned"}
    pruned = [result for result in results if result.state == "pruned"]
    kept = [result for result in results if result.state == "complete"]
    first = {row.number: row.scores["exact_match"] for row in journal(folder) if row.evaluation == 1}
    assert max(first[result.number] for result in pruned) <= min(first[result.number] for result in kept)
    assert all("exact_match" in result.metrics for result in pruned)


def journal(folder):
    return [entry.record for entry, _ in read(folder.root) if isinstance(entry.record, Evaluated)]


def test_the_choice_is_reported_on_rows_that_chose_nothing(place):
    ended, folder, _ = run(place, study(place, data={"test": str(place / "unseen.jsonl")}), "tested")
    results = ended.results
    assert {"test_eval_loss", "test_exact_match"} <= results.base_values.keys()
    assert all({"test_eval_loss", "test_exact_match"} <= trial.metrics.keys() for trial in results.trials)
    assert (
        f"rows that chose nothing (data.test): trial {results.findings.best.number}, the best, has" in results.on_test()
    )
    report = folder.report.read_text()
    assert "rows that chose nothing" in report
    assert "exact match on test rows" in report


def test_a_verdict_on_accuracy_over_choices_rests_on_seeds_and_examples(place):
    questions = [
        {"prompt": f"w{n} w{n + 1}", "choices": [f"w{40 + n}", f"w{41 + n}", f"w{20 + n} w{n}"], "answer": 0}
        for n in range(FACTS)
    ]
    for name in ("quiz", "quiz-asked"):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    spec = study(
        place,
        data={"train": str(place / "quiz.jsonl"), "eval": str(place / "quiz-asked.jsonl")},
        evaluation={"metrics": ["accuracy", "accuracy_norm"]},
        sweep={"metric": "accuracy"},
    )
    ended, folder, said = run(place, spec, "chosen")
    findings = ended.results.findings
    assert findings.measure.name == "accuracy"
    assert findings.base_value < findings.best.value <= 1
    assert {row.evidence for row in findings.rows[1:]} <= {"seeds and examples"}
    assert len(ended.results.losses) == 6
    assert "accuracy by length" in said
    assert "accuracy by length" in folder.report.read_text()


def test_texts_are_refused_before_the_base_is_loaded(place):
    spec = study(place, data={"eval": str(place / "texts.jsonl")}, model={"model_name_or_path": str(place / "base")})
    with pytest.raises(
        InputError, match=r"exact_match compares answers with references, but .*texts\.jsonl:1 is a text"
    ):
        run(place, spec, "refused")


def test_another_metric_is_no_resumption(finished, place):
    with pytest.raises(InputError, match=r"evaluation: \{metrics: \[exact_match\], max_new_tokens: 4\} -> "):
        run(place, study(place, evaluation={"max_new_tokens": 5}))
