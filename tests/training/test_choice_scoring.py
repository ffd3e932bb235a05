"""Multiple choice: both engines find the choice that a plain pass of `PeftModel` finds the likeliest."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from workshop import CPU, drain, only, own_base

from lora_lab.common.errors import InputError
from lora_lab.data.tokens import Choice, Question
from lora_lab.study.events import Evaluated, Finished
from lora_lab.study.settings import EvaluationSettings
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.choice_scoring import choice_rows
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

ENGINES = {"packed": PackedEngine, "reference": ReferenceEngine}
QUESTIONS = 10
BOTH = ("accuracy", "accuracy_norm")


def write_questions(path):
    """Choices of one to three words, so that it matters whether their length counts."""
    numbers = np.random.default_rng(0)
    rows = []
    for index in range(QUESTIONS):
        prompt = " ".join(f"w{word}" for word in numbers.integers(0, 30, 1 + index % 4))
        choices = [" ".join(f"w{word}" for word in numbers.integers(30, 60, 1 + own)) for own in (0, 1, 2)]
        rows.append({"prompt": prompt, "choices": choices[index % 3 :] + choices[: index % 3], "answer": index % 3})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def config(bench, tmp_path):
    data = {"train": write_questions(tmp_path / "train.jsonl"), "eval": write_questions(tmp_path / "asked.jsonl")}

    def make(evaluation=None, **settings):
        trial = bench.trial(data=data, **({"learning_rate": 2e-2, "num_train_epochs": 3} | settings))
        return trial.model_copy(update={"evaluation": EvaluationSettings(**({"metrics": BOTH} | (evaluation or {})))})

    return make


def make(bench, name, folder, config):
    base = own_base(config.model, CPU)
    return ENGINES[name](base, DataCatalog(base.tokenizer, bench.scratch), folder / name)


def lines_of(engine, number, evaluation):
    path = TrialFolder(engine.trial_folder(number)).predictions(evaluation)
    return [json.loads(line) for line in path.read_text().splitlines()]


def plain_likelihoods(model, tokenizer, line):
    """The log-likelihood of every choice of a line, one pass for each."""
    told = []
    for choice in line["choices"]:
        prompt, whole = (
            tokenizer(text, return_tensors="pt").input_ids for text in (line["prompt"], f"{line['prompt']} {choice}")
        )
        chances = model(whole).logits[0].log_softmax(-1)
        new = range(prompt.shape[1], whole.shape[1])
        told.append(sum(float(chances[place - 1, whole[0, place]]) for place in new))
    return np.array(told)


@torch.no_grad()
def check(engine, number, bench, metrics):
    """Compare what an engine kept of a trial with plain PEFT on the adapter that it left."""
    plain = AutoModelForCausalLM.from_pretrained(bench.base_folder, dtype="float64")
    model = PeftModel.from_pretrained(plain, engine.trial_folder(number) / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(bench.base_folder)
    lines = lines_of(engine, number, 3)
    hits = {name: [] for name in BOTH}
    for line in lines:
        told = plain_likelihoods(model, tokenizer, line)
        np.testing.assert_allclose(line["log_likelihoods"], told, atol=2e-6)  # kept to six digits
        for name, lengths in zip(BOTH, ([1, 1, 1], [len(choice) for choice in line["choices"]]), strict=True):
            hits[name].append(float(line["choices"][np.argmax(told / lengths)] == line["reference"]))
            assert line[name] == hits[name][-1]
        assert line["prediction"] == line["choices"][np.argmax(told)]
    for name, own in hits.items():
        assert metrics[name] == pytest.approx(np.mean(own))
        kept = load_file(TrialFolder(engine.trial_folder(number)).evaluation(3, name))
        assert kept["nll"].tolist() == [-hit for hit in own]
    assert hits["accuracy"] != hits["accuracy_norm"], "the questions tell the two apart"
    return lines


@pytest.mark.parametrize("name", ENGINES)
def test_the_choice_is_that_of_plain_peft(bench, tmp_path, config, name):
    engine = make(bench, name, tmp_path, config())
    base = engine.base_scores(config())
    engine.admit(0, config())
    events = drain(engine)
    [finished] = only(events, Finished)
    lines = check(engine, 0, bench, finished.metrics)
    assert lines[1]["place"].endswith("asked.jsonl:2")
    assert [set(event.scores) for event in only(events, Evaluated)] == [set(), set(), set(BOTH)]
    assert base.keys() == set(BOTH)


def test_trials_of_a_pack_share_the_passes_and_have_the_scores_of_each_alone(bench, tmp_path, config):
    trials = [
        config({"at": "evaluations"}),
        config({"at": "evaluations"}, seed=1, lora={"r": 8, "target_modules": "attention"}),
        config({"at": "evaluations"}, seed=2, lora={"r": 2, "layers": "last_half"}),
    ]
    packed = make(bench, "packed", tmp_path, trials[0])
    for number, trial in enumerate(trials):
        packed.admit(number, trial)
    together = drain(packed)
    for number, trial in enumerate(trials):
        alone = make(bench, "packed", tmp_path / "alone", trial)
        alone.admit(number, trial)
        mine = [event.scores for event in only(together, Evaluated) if event.number == number]
        assert mine == [event.scores for event in only(drain(alone), Evaluated)]
        for evaluation in (1, 3):
            assert lines_of(packed, number, evaluation) == lines_of(alone, number, evaluation)


def test_the_same_rows_may_be_answered_too(bench, tmp_path, config):
    trial = config({"metrics": ("exact_match", "accuracy"), "max_new_tokens": 4})
    engine = make(bench, "packed", tmp_path, trial)
    engine.admit(0, trial)
    [finished] = only(drain(engine), Finished)
    lines = lines_of(engine, 0, 3)
    assert list(finished.metrics)[-2:] == ["exact_match", "accuracy"]
    assert [line["exact_match"] for line in lines] == [
        float(line["prediction"].split() == line["reference"].split()) for line in lines
    ]
    assert {"choices", "log_likelihoods", "accuracy"} <= lines[0].keys()


def test_rows_without_choices_are_refused(bench, tmp_path):
    trial = bench.trial().model_copy(update={"evaluation": EvaluationSettings(metrics=("accuracy",))})
    with pytest.raises(InputError, match=r"accuracy and accuracy_norm find the likeliest of several choices, but"):
        make(bench, "packed", tmp_path, trial).base_scores(trial)


def question(*tokens):
    choices = tuple(Choice(f"c{index}", np.arange(count)) for index, count in enumerate(tokens))
    return Question("q.jsonl:4", np.arange(5), "c0", None, choices)


def test_a_row_for_each_choice_predicts_the_choice_alone():
    rows = choice_rows([question(2, 1), replace(question(3), prompt=np.array([7]))], 8)
    assert [len(ids) for ids in rows.input_ids] == [7, 6, 4]
    assert [rows.label_tokens(index) for index in range(3)] == [2, 1, 3]


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ([question(2, 4)], r"q\.jsonl:4: choices: prompt and choice have 9 tokens, more than the 8 that this base"),
        ([question(2, 0)], r"q\.jsonl:4: choices: 'c1' has no token"),
        ([replace(question(2, 2), prompt=np.arange(0))], r"q\.jsonl:4: choices: 'c0' has no token to predict"),
        ([question(2, 2), question()], "the evaluation rows have none"),
        ([], "the evaluation rows have none"),
    ],
)  # fmt: skip
def test_choices_that_cannot_be_compared_are_refused(asked, problem):
    with pytest.raises(InputError, match=problem):
        choice_rows(asked, 8)
