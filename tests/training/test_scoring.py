"""What trials answer to held-out prompts, and how that becomes figures, files and errors, on both engines."""

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
from lora_lab.study.events import Evaluated, Finished, Milestone
from lora_lab.study.measures import MEASURES
from lora_lab.study.own_metrics import OWN_METRICS, add_own_metrics
from lora_lab.study.settings import EvaluationSettings
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

ENGINES = {"packed": PackedEngine, "reference": ReferenceEngine}
FACTS = 8
LEARNED = {"learning_rate": 2e-2, "num_train_epochs": 12, "per_device_train_batch_size": 4}
"""Enough to know facts by heart, which the base does not."""


def write_facts(path, rows=FACTS):
    """Two words after one, two or three, which differ from row to row."""
    lines = [
        {
            "prompt": " ".join(f"w{index + place}" for place in range(1 + index % 3)),
            "completion": f"w{40 + index} w{30 + index}",
        }
        for index in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def facts(tmp_path):
    return {"train": write_facts(tmp_path / "facts.jsonl"), "eval": write_facts(tmp_path / "asked.jsonl")}


@pytest.fixture
def config(bench, facts):
    def make(evaluation=None, **settings):
        asked = EvaluationSettings(**{"metrics": ("exact_match",), "max_new_tokens": 4} | (evaluation or {}))
        trial = bench.trial(data=facts, **(LEARNED | settings))
        return trial.model_copy(update={"evaluation": asked})

    return make


@pytest.fixture
def own_metrics(tmp_path):
    """Adds the functions of a source text to the tables, for one test."""

    def add(source):
        (tmp_path / "my_metrics.py").write_text(source)
        before = {**MEASURES}
        add_own_metrics(tmp_path / "my_metrics.py")
        added.extend(name for name in MEASURES if name not in before)

    added = []
    yield add
    for name in added:
        del MEASURES[name]
        OWN_METRICS.pop(name, None)


def make(bench, name, folder, config):
    base = own_base(config.model, CPU)
    return ENGINES[name](base, DataCatalog(base.tokenizer, bench.scratch), folder / name)


def lines_of(engine, number, evaluation):
    path = TrialFolder(engine.trial_folder(number)).predictions(evaluation)
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", ["packed", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_trial_is_scored_at_its_end_by_what_it_answers(bench, tmp_path, config, name):
    engine = make(bench, name, tmp_path, config())
    engine.admit(0, config())
    events = drain(engine)

    assert [event.scores for event in only(events, Evaluated)[:-1]] == [{}] * 11
    [finished] = only(events, Finished)
    assert finished.metrics["exact_match"] == only(events, Evaluated)[-1].scores["exact_match"]
    assert 0 < finished.metrics["exact_match"] <= 1
    answered = lines_of(engine, 0, 12)
    assert [row["place"].rpartition(":")[2] for row in answered] == [str(line) for line in range(1, FACTS + 1)]
    assert [row["exact_match"] for row in answered] == [row["prediction"] == row["reference"] for row in answered]
    assert answered[3] == answered[3] | {"prompt": "w3", "reference": "w43 w33"}
    kept = load_file(TrialFolder(engine.trial_folder(0)).evaluation(12, "exact_match"))
    assert -kept["nll"].sum() / kept["label_tokens"].sum() == finished.metrics["exact_match"]
    assert kept["nll"].tolist() == [-row["exact_match"] for row in answered]


@pytest.mark.slow
def test_the_adapter_that_is_left_answers_so_in_plain_peft(bench, tmp_path, config):
    engine = make(bench, "packed", tmp_path, config())
    engine.admit(0, config())
    drain(engine)
    plain = AutoModelForCausalLM.from_pretrained(bench.base_folder, dtype="float64")
    model = PeftModel.from_pretrained(plain, engine.trial_folder(0) / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(bench.base_folder)
    ends = [tokenizer.eos_token_id, plain.generation_config.eos_token_id]
    for row in lines_of(engine, 0, 12):
        asked = tokenizer(row["prompt"], return_tensors="pt")
        whole = model.generate(**asked, do_sample=False, max_new_tokens=4, eos_token_id=ends, pad_token_id=0)
        new = whole[0, asked["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True) == row["prediction"]


@pytest.mark.slow
def test_trials_of_a_pack_have_the_scores_that_the_reference_engine_gives_each(bench, tmp_path, config):
    trials = [
        config({"at": "evaluations"}, eval_steps=12),
        config({"at": "evaluations"}, eval_steps=12, seed=1, lora={"r": 8, "target_modules": "attention"}),
        config(eval_steps=12, seed=2, lora={"r": 2, "layers": "last_half"}),
    ]
    packed = make(bench, "packed", tmp_path, trials[0])
    for number, trial in enumerate(trials):
        packed.admit(number, trial)
    together = drain(packed)
    reference = make(bench, "reference", tmp_path, trials[0])
    for number, trial in enumerate(trials):
        reference.admit(number, trial)
        alone = drain(reference)
        mine = [event.scores for event in only(together, Evaluated) if event.number == number]
        assert mine == [event.scores for event in only(alone, Evaluated)]
        assert lines_of(packed, number, 2) == lines_of(reference, number, 2)
    assert packed.base_scores(trials[0]) == reference.base_scores(trials[0])
    assert packed.base_scores(trials[0])["exact_match"] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_a_shorter_run_that_is_read_off_has_its_own_score_and_files(bench, tmp_path, config, name):
    long, short = config(num_train_epochs=12), config(num_train_epochs=7)
    engine = make(bench, name, tmp_path, long)
    engine.admit(0, long, [short])
    [milestone] = only(drain(engine), Milestone)
    engine.admit(1, short)
    [finished] = only(drain(engine), Finished)

    assert milestone.metrics["exact_match"] == finished.metrics["exact_match"]
    left = TrialFolder(engine.trial_folder(0)).shorter_run(7)
    assert left.predictions(7).read_bytes() == TrialFolder(engine.trial_folder(1)).predictions(7).read_bytes()
    assert left.evaluation(7, "exact_match").is_file()
    assert left.evaluation(7).is_file()


def plain_hits(folder, adapter, rows):
    """Label tokens that plain PEFT thinks the most likely ones, row after row, and how many labels there are."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype="float64"), adapter).eval()
    hits = []
    for ids, labels in zip(rows.input_ids, rows.labels, strict=True):
        told = model(torch.from_numpy(ids)[None]).logits[0, :-1].argmax(-1).numpy()
        learned = labels[1:] != -100
        hits.append((int((told == labels[1:])[learned].sum()), int(learned.sum())))
    return np.array(hits).T


@pytest.mark.parametrize("lora", [{}, pytest.param({"target_modules": "all-linear+head"}, marks=pytest.mark.slow)])
def test_token_accuracy_and_perplexity_need_no_answers_and_both_engines_have_them(bench, tmp_path, config, lora):
    asked = {"metrics": ("token_accuracy", "perplexity"), "at": "evaluations"}
    trial, found = config(asked, eval_steps=12, lora=lora), {}
    for name in ENGINES:
        engine = make(bench, name, tmp_path, trial)
        engine.admit(0, trial)
        found[name] = drain(engine)
        _, last = only(found[name], Evaluated)
        assert last.scores["perplexity"] == pytest.approx(np.exp(last.eval_loss))
        assert engine.base_scores(trial).keys() == {"token_accuracy", "perplexity"}
    same = [[event.scores["token_accuracy"] for event in only(events, Evaluated)] for events in found.values()]
    assert same[0] == same[1]
    hits, labels = plain_hits(bench.base_folder, engine.trial_folder(0) / "adapter", bench.data.splits(trial.data).eval)
    kept = load_file(TrialFolder(engine.trial_folder(0)).evaluation(2, "token_accuracy"))
    assert kept["nll"].tolist() == (-hits).tolist()
    assert kept["label_tokens"].tolist() == labels.tolist()
    assert last.scores["token_accuracy"] == pytest.approx(hits.sum() / labels.sum())
    assert not TrialFolder(engine.trial_folder(0)).predictions(2).exists()


@pytest.mark.parametrize("name", ["packed", pytest.param("reference", marks=pytest.mark.slow)])
def test_rows_that_choose_nothing_are_measured_once_at_the_end(bench, tmp_path, facts, name):
    data = facts | {"test": write_facts(tmp_path / "unseen.jsonl", rows=5)}
    settings = EvaluationSettings(metrics=("exact_match", "perplexity"), at="evaluations", max_new_tokens=4)
    trial = bench.trial(data=data, **LEARNED, eval_steps=12).model_copy(update={"evaluation": settings})
    engine = make(bench, name, tmp_path, trial)
    base = engine.base_scores(trial)
    engine.admit(0, trial)
    events = drain(engine)

    measured = {"test_eval_loss", "test_exact_match", "test_perplexity"}
    assert all(not measured & event.costs.keys() for event in only(events, Evaluated)), "no pruner sees them"
    [finished] = only(events, Finished)
    assert measured <= finished.metrics.keys()
    assert base.keys() == measured | {"exact_match", "perplexity"}
    files = TrialFolder(engine.trial_folder(0))
    assert not files.evaluation(1, "test_eval_loss").exists()
    kept = load_file(files.evaluation(2, "test_eval_loss"))
    assert kept["nll"].sum() / kept["label_tokens"].sum() == finished.metrics["test_eval_loss"]
    assert kept["nll"] == pytest.approx(load_file(files.evaluation(2))["nll"][:5], rel=1e-9), "five of the same rows"
    lines = [json.loads(line) for line in files.predictions(2, test=True).read_text().splitlines()]
    assert [line["place"].rpartition("/")[2] for line in lines] == [f"unseen.jsonl:{row}" for row in range(1, 6)]
    assert np.mean([line["exact_match"] for line in lines]) == finished.metrics["test_exact_match"]
    assert [line["prediction"] for line in lines] == [line["prediction"] for line in lines_of(engine, 0, 2)[:5]]


def test_a_shorter_run_has_its_own_figures_on_test_rows(bench, tmp_path, facts):
    data = facts | {"test": write_facts(tmp_path / "unseen.jsonl", rows=5)}
    long, short = (bench.trial(data=data, **(LEARNED | {"num_train_epochs": epochs})) for epochs in (4, 2))
    engine = make(bench, "packed", tmp_path, long)
    engine.admit(0, long, [short])
    engine.admit(1, short)
    events = drain(engine)
    [milestone] = only(events, Milestone)
    ended = {event.number: event.metrics for event in only(events, Finished)}
    assert milestone.metrics["test_eval_loss"] == ended[1]["test_eval_loss"] != ended[0]["test_eval_loss"]
    left = TrialFolder(engine.trial_folder(0)).shorter_run(2).evaluation(2, "test_eval_loss")
    own = TrialFolder(engine.trial_folder(1)).evaluation(2, "test_eval_loss")
    assert left.read_bytes() == own.read_bytes()


OWN = """
seen = []

def as_long(prediction, reference, row):
    seen.append(row["completion"])
    if len(seen) == 3:
        raise ValueError("not this one")
    return float(len(prediction.split()) == len(row["completion"].split()))
"""


def test_a_metric_of_ones_own_that_raises_costs_its_trial_that_metric_alone(bench, tmp_path, facts, own_metrics):
    own_metrics(OWN)
    trials = [bench.trial(data=facts, **(LEARNED | {"num_train_epochs": 1, "seed": seed})) for seed in (0, 1)]
    settings = EvaluationSettings(metrics=("exact_match", "as_long"), max_new_tokens=4)
    trials = [trial.model_copy(update={"evaluation": settings}) for trial in trials]
    engine = make(bench, "packed", tmp_path, trials[0])
    for number, trial in enumerate(trials):
        engine.admit(number, trial)
    events = drain(engine)

    failed, scored = only(events, Evaluated)
    assert failed.failures.keys() == {"as_long"}
    assert failed.failures["as_long"].endswith("as_long of " + facts["eval"] + ":3 raised ValueError: not this one")
    assert scored.failures == {}
    ended = {event.number: event.metrics for event in only(events, Finished)}
    assert np.isnan(ended[0]["as_long"])
    assert np.isfinite(ended[0]["exact_match"])
    lines = lines_of(engine, 1, 1)
    assert [line["as_long"] for line in lines] == [float(len(line["prediction"].split()) == 2) for line in lines]
    assert ended[1]["as_long"] == np.mean([line["as_long"] for line in lines])
    assert not TrialFolder(engine.trial_folder(0)).evaluation(1, "as_long").exists()


def test_one_that_fails_on_the_bare_base_is_refused_before_anything_is_trained(bench, tmp_path, facts, own_metrics):
    own_metrics("def mine(prediction, reference, row):\n    return row['none']\n")
    settings = EvaluationSettings(metrics=("mine",), max_new_tokens=4)
    trial = bench.trial(data=facts).model_copy(update={"evaluation": settings})
    with pytest.raises(InputError, match=r"mine of .*asked\.jsonl:1 raised KeyError: 'none'"):
        make(bench, "packed", tmp_path, trial).base_scores(trial)


def test_without_metrics_nothing_is_answered(bench, tmp_path, config):
    trial = config().model_copy(update={"evaluation": EvaluationSettings()})
    engine = make(bench, "packed", tmp_path, trial)
    assert engine.base_scores(trial) == {}
    engine.admit(0, trial)
    [finished] = only(drain(engine), Finished)
    assert "exact_match" not in finished.metrics
    assert not list(engine.trial_folder(0).rglob("predictions*"))


def test_texts_without_an_answer_are_refused(bench, tmp_path):
    trial = bench.trial().model_copy(update={"evaluation": EvaluationSettings(metrics=("exact_match",))})
    with pytest.raises(InputError, match=r"evaluation\.metrics: exact_match compares answers with references"):
        make(bench, "packed", tmp_path, trial).base_scores(trial)


def test_an_answer_that_has_no_room_is_refused_with_the_longest_prompt(bench, tmp_path, config, monkeypatch):
    trial = config({"max_new_tokens": 60})
    engine = make(bench, "packed", tmp_path, trial)
    linears = engine._base.linears
    short = replace(linears, limits=replace(linears.limits, positions=62))
    monkeypatch.setattr(engine._assessor._scorer, "_base", replace(engine._base, linears=short))
    said = r"max_new_tokens: 60 after the longest prompt, of 3 tokens \(.*asked\.jsonl:3\), .*62"
    with pytest.raises(InputError, match=said):
        engine.base_scores(trial)


@pytest.mark.slow
def test_every_example_is_scored_whatever_the_batch(bench, tmp_path, config):
    found = []
    for rows in (1, 3, 16):
        engine = make(bench, "packed", tmp_path / str(rows), config(per_device_eval_batch_size=rows))
        engine.admit(0, config(per_device_eval_batch_size=rows))
        drain(engine)
        found.append(load_file(TrialFolder(engine.trial_folder(0)).evaluation(12, "exact_match"))["nll"])
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
