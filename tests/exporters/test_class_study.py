"""A study of classes from its file to its exports: searched by accuracy, judged row by row, handed over."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from classifiers import LABELS, write_encoder, write_rows
from export_trained import command, steps
from test_round_trip import adapters_agree, agree, export, run_in, train_by_script
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import lora_lab.export
from lora_lab.command_line import run_command

STUDY = {
    "study_name": "classes",
    "model": {"model_name_or_path": "base", "task_type": "SEQ_CLS", "dtype": "float32"},
    "data": {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 32},
    "training": {"learning_rate": 3e-3, "per_device_train_batch_size": 5, "num_train_epochs": 3},
    "evaluation": {"metrics": ["accuracy", "macro_f1"], "at": "evaluations"},
    "sweep": {
        "metric": "accuracy",
        "sampler": "grid",
        "pruner": "none",
        "seeds": 2,
        "pack_size": 1,
        "parameters": {"r": {"values": [2, 4]}},
        "verdict": {"absolute_margin": 0.9},
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    write_encoder(folder / "base", "BERT", torch.float32)
    write_rows(folder / "train.jsonl", 24, pairs=True)
    write_rows(folder / "eval.jsonl", 20, seed=1, pairs=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    planned = command("lora_lab.plan", "study.yaml", folder=folder)
    assert re.search(r"engine +reference: task_type SEQ_CLS trains a classification head in full", planned)
    said = command("lora_lab.sweep", "study.yaml", folder=folder)
    assert re.search(r"Best: trial \d .* reaches accuracy", said)
    return folder / "runs" / "classes"


@pytest.mark.slow
def test_the_verdict_tests_accuracy_over_seeds_and_rows(run):
    summary = (run / "summary.md").read_text()
    assert "seeds and examples" in summary  # what the comparison of the two ranks rests on
    report = (run / "report.html").read_text()
    assert "macro F1" in report
    assert "nats per row" in report
    assert "nats per token" not in report + summary + (run / "best/adapter/README.md").read_text()
    command("lora_lab.report", "study.yaml", folder=run.parents[1])
    assert (run / "summary.md").read_text() == summary


@pytest.mark.slow
def test_the_script_reaches_the_losses_of_the_trial(run):
    folder = export(run, "peft", 1)
    agree(train_by_script(folder), steps(run, 1))
    adapters_agree(folder / "output", run / "trials" / "0001" / "adapter", 1e-5)


@pytest.mark.slow
def test_the_merged_model_gives_the_predictions_of_the_trial(run):
    folder = export(run, "merged", 1) / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tuple(model.config.id2label.values()) == LABELS
    rows = [json.loads(line) for line in (run.parents[1] / "eval.jsonl").read_text().splitlines()]
    kept = (run / "trials/0001/evaluations/predictions-0003.jsonl").read_text().splitlines()
    for row, line in zip(rows, map(json.loads, kept), strict=True):
        with torch.no_grad():
            inputs = tokenizer(row["premise"], row["hypothesis"], return_tensors="pt", truncation=True, max_length=32)
            told = model(**inputs).logits[0].softmax(dim=-1)
        assert model.config.id2label[int(told.argmax())] == line["prediction"]
        assert float(told.max()) == pytest.approx(line["probability"], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "why"), [("trl", "trains language models; peft can"), ("vllm", "it serves language")]
)
def test_targets_without_classes_refuse_by_name(run, target, why, capsys):
    with run_in(run.parents[1], "study.yaml", "--to", target, "--trial", "1"), pytest.raises(SystemExit) as end:
        run_command(lora_lab.export.export)
    assert end.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "model.task_type: SEQ_CLS" in said
    assert why in said


@pytest.mark.slow
def test_a_study_does_not_go_on_with_other_classes(run):
    folder = run.parents[1]
    rows = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(rows + json.dumps({"premise": "w4", "hypothesis": "w5", "label": "new"}) + "\n")
    with pytest.raises(AssertionError, match=r"model.labels: cold, hot, mild -> cold, hot, mild, new|model.labels"):
        command("lora_lab.sweep", "study.yaml", "--set", "sweep.seeds=3", folder=folder)
    (folder / "train.jsonl").write_text(rows)
