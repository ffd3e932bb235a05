"""Heads for classes: where their weights come from, how they are saved and resumed, and what is measured of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from classifiers import CONFIGS, LABELS, classification_engine, classification_trial, write_encoder, write_rows
from peft import get_peft_model
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from samples import sample
from sklearn.metrics import f1_score
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification
from workshop import CPU, drain, only

from lora_lab.common.errors import InputError
from lora_lab.study.events import Finished, Logged
from lora_lab.study.settings import LoraSettings
from lora_lab.study.targets import placement, resolve_targets, trainable_parameters
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.base.architecture import linear_map_of_config
from lora_lab.training.base.classification import classifier_config
from lora_lab.training.base.loading import load_base
from lora_lab.training.batch import padded
from lora_lab.training.reference.losses import class_logits


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    write_rows(folder / "train.jsonl", 24)
    write_rows(folder / "eval.jsonl", 12, seed=1)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    write_encoder(folder, "BERT")
    return folder


@pytest.fixture
def trial(bert, rows):
    def make(base=bert, **settings):
        return classification_trial(base, rows / "train.jsonl", rows / "eval.jsonl", **settings)

    return make


def head_of(engine, config):
    """The head that a trial begins with."""
    engine.admit(0, config)
    head = {name: value.detach().clone() for name, value in engine.trial(0).parameters.items() if "classifier" in name}
    engine.discard(0)
    return head


def test_the_head_is_drawn_from_the_trials_seed(trial, tmp_path):
    engine, base = classification_engine(trial(), tmp_path)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    first, again, other = (head_of(engine, trial(seed=seed)) for seed in (3, 3, 4))
    assert len(first) == 2
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["base_model.model.classifier.modules_to_save.default.weight"], next(iter(other.values()))
    )
    assert all(torch.equal(before[name], value) for name, value in base.model.state_dict().items())


def test_a_trial_goes_on_bit_for_bit(trial, tmp_path):
    config = trial(num_train_epochs=2, metrics=["accuracy"], lora={"lora_dropout": 0.1})
    whole, _ = classification_engine(config, tmp_path, tmp_path / "whole")
    whole.admit(0, config)
    events = drain(whole)
    parts = []
    for stop in (5, None):
        engine, _ = classification_engine(config, tmp_path, tmp_path / "parts")
        engine.admit(0, config)
        while engine.active and (stop is None or engine.trial(0).progress.step < stop):
            parts += engine.step()
        engine.save_checkpoints()
    assert [event.loss for event in only(parts, Logged)] == [event.loss for event in only(events, Logged)]
    ours, theirs = (load_file(one.trial_folder(0) / "adapter/adapter_model.safetensors") for one in (engine, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert only(parts, Finished)[0].metrics["accuracy"] == only(events, Finished)[0].metrics["accuracy"]


def test_scores_are_kept_by_row_with_what_was_predicted(trial, tmp_path):
    config = trial(num_train_epochs=6, metrics=["accuracy", "macro_f1"])
    engine, _ = classification_engine(config, tmp_path)
    engine.admit(0, config)
    metrics = only(drain(engine), Finished)[0].metrics
    files = TrialFolder(engine.trial_folder(0))
    lines = [json.loads(line) for line in files.predictions(6).read_text().splitlines()]
    meant, said = ([line[key] for line in lines] for key in ("label", "prediction"))
    hits = [one == other for one, other in zip(meant, said, strict=True)]
    assert set(meant) == set(LABELS)
    assert metrics["accuracy"] == pytest.approx(np.mean(hits))
    assert metrics["accuracy"] > engine.base_scores(config)["accuracy"], "nothing was learned"
    assert metrics["macro_f1"] == pytest.approx(f1_score(meant, said, average="macro", labels=sorted(set(meant))))
    kept = load_arrays(files.evaluation(6, "accuracy"))
    assert (-kept["nll"]).tolist() == [float(hit) for hit in hits]
    assert lines[0]["place"].endswith("eval.jsonl:1")
    assert metrics["peak_memory_bytes"] > metrics["adapter_bytes"] + metrics["optimizer_bytes"]
    assert all(1 / 3 < line["probability"] <= 1 for line in lines)
    assert load_arrays(files.evaluation(6))["nll"].mean() == pytest.approx(metrics["eval_loss"])


def test_classes_are_told_on_test_rows_too(trial, rows, tmp_path):
    (tmp_path / "unseen.jsonl").write_bytes((rows / "eval.jsonl").read_bytes())
    config = trial(num_train_epochs=1, metrics=["accuracy", "macro_f1"]).changed(
        data={"test": {"path": str(tmp_path / "unseen.jsonl")}}
    )
    engine, _ = classification_engine(config, tmp_path)
    base = engine.base_scores(config)
    engine.admit(0, config)
    metrics = only(drain(engine), Finished)[0].metrics
    for name in ("eval_loss", "accuracy", "macro_f1"):
        assert metrics[f"test_{name}"] == metrics[name], "they are the same rows here"
    assert base["test_accuracy"] == base["accuracy"]
    lines = TrialFolder(engine.trial_folder(0)).predictions(1, test=True).read_text().splitlines()
    assert json.loads(lines[0])["place"].endswith("unseen.jsonl:1")


def saved_classifier(folder, names, bert):
    """A checkpoint that was trained on classes, as far as its config says."""
    torch.manual_seed(5)
    config = classifier_config(CONFIGS["BERT"][0], names)
    AutoModelForSequenceClassification.from_config(config).double().save_pretrained(folder)
    for file in bert.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return load_file(folder / "model.safetensors")["classifier.weight"]


def test_a_head_for_the_same_classes_is_the_start_in_whatever_order(trial, bert, tmp_path):
    for number, names in enumerate((LABELS, LABELS[::-1])):
        stored = saved_classifier(tmp_path / str(number), names, bert)
        base = load_base(trial(tmp_path / str(number)).model, CPU)
        assert not base.drawn
        expected = stored if number == 0 else stored.flip(0)
        assert torch.equal(base.model.classifier.weight, expected)


def test_a_head_for_other_classes_is_drawn_anew(trial, bert, tmp_path):
    for number, names in enumerate((("x", "y", "z"), ("x", "y"))):
        stored = saved_classifier(tmp_path / str(number), names, bert)
        config = trial(tmp_path / str(number), seed=1)
        engine, base = classification_engine(config, tmp_path / str(number))
        assert base.drawn == {"classifier.weight", "classifier.bias"}
        weight = head_of(engine, config)["base_model.model.classifier.modules_to_save.default.weight"]
        assert weight.shape == (3, 32)
        assert not torch.equal(weight[:2], stored[:2])


def test_what_a_checkpoint_lacks_beside_the_head_must_be_trained(trial, bert, tmp_path):
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(CONFIGS["BERT"][0]).double().save_pretrained(tmp_path / "base")
    for file in bert.glob("tokenizer*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    engine, _ = classification_engine(trial(tmp_path / "base"), tmp_path)
    with pytest.raises(InputError, match=r"no weights for bert.pooler, which would stay random; add pooler"):
        engine.admit(0, trial(tmp_path / "base"))
    config = trial(tmp_path / "base", lora={"modules_to_save": ["pooler"]})
    engine.admit(0, config)
    drain(engine)
    adapter = load_file(engine.trial_folder(0) / "adapter/adapter_model.safetensors")
    assert {name for name in adapter if "lora" not in name} == {
        f"base_model.model.{name}.{part}" for name in ("classifier", "bert.pooler.dense") for part in ("weight", "bias")
    }


def test_weights_of_layers_that_are_missing_are_refused(trial, bert, tmp_path):
    config = CONFIGS["BERT"][0].to_dict() | {"num_hidden_layers": 3}
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"lacks 16 weights that its config.json asks for"):
        load_base(trial(tmp_path).model, CPU)


@pytest.mark.parametrize("family", sample(CONFIGS, ["ModernBERT", "Llama"]))
def test_presets_hold_by_role_and_parameters_are_those_that_peft_counts(family):
    linears = linear_map_of_config(CONFIGS[family][0], LABELS)
    by_preset = {
        name: set(resolve_targets(linears, LoraSettings(target_modules=name))) for name in ("attention", "mlp")
    }
    assert by_preset["attention"]
    assert by_preset["mlp"]
    assert not by_preset["attention"] & by_preset["mlp"]
    everything = LoraSettings(r=4, target_modules="all-linear")
    in_layers = {name for name in resolve_targets(linears, everything) if linears.layer_of(name) is not None}
    assert in_layers == by_preset["attention"] | by_preset["mlp"]
    assert any(text.endswith("trained in full") for text in placement(linears, everything).left_out)
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(classifier_config(CONFIGS[family][0], LABELS))
        for lora in (everything, LoraSettings(r=2, target_modules="attention", layers=(1,), use_dora=True)):
            peft = get_peft_model(model, lora_config(lora, linears))
            assert trainable_parameters(linears, lora) == peft.get_nb_trainable_parameters()[0]
            model = peft.unload()


def test_the_head_takes_no_adapter(bert):
    linears = linear_map_of_config(bert, LABELS)
    with pytest.raises(InputError, match="classifier is the classification head, which is trained in full"):
        resolve_targets(linears, LoraSettings(target_modules=("classifier",)))


@pytest.mark.parametrize("family", ["ModernBERT", "Llama"])
def test_padding_changes_no_row(family, trial, tmp_path):
    write_encoder(tmp_path / "base", family)
    config = trial(tmp_path / "base")
    engine, base = classification_engine(config, tmp_path)
    splits = engine._data.splits(config.data)
    together = class_logits(base, base.model, padded([splits.eval], [range(12)]))
    for index in range(12):
        alone = class_logits(base, base.model, padded([splits.eval], [[index]]))
        assert torch.allclose(together[index], alone[0], atol=1e-12)


@pytest.mark.parametrize("family", ["BERT", "Llama"])
def test_activations_that_are_computed_again_change_nothing(family, trial, tmp_path):
    write_encoder(tmp_path / "base", family)
    losses = []
    for number, again in enumerate((False, True)):
        config = trial(tmp_path / "base", gradient_checkpointing=again, max_steps=3)
        engine, _ = classification_engine(config, tmp_path, tmp_path / str(number))
        engine.admit(0, config)
        losses.append([event.loss for event in only(drain(engine), Logged)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert losses[0][0] != losses[0][-1]


def test_a_quantized_base_keeps_its_head_in_full(trial, bert, tmp_path):
    config = trial(dtype="float32")
    config = config.model_copy(update={"model": config.model.model_copy(update={"quantization": "nf4"})})
    engine, base = classification_engine(config, tmp_path)
    assert base.model.classifier.weight.dtype == torch.float32
    engine.admit(0, config)
    assert np.isfinite(only(drain(engine), Finished)[0].metrics["eval_loss"])
