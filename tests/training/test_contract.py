"""What both engines promise: the same events in the same order, and the same numbers, for the same trial."""

from __future__ import annotations

import itertools
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from samples import sample
from torch.nn import functional
from transformers import AutoModelForCausalLM
from workshop import CPU, drain, only, own_base

from lora_lab.common.errors import CheckpointError, InputError
from lora_lab.study.events import Diverged, Evaluated, Failed, Finished, Logged, Milestone, OutOfMemory
from lora_lab.study.measures import MEASURES
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training import evaluation
from lora_lab.training.base.architecture import linear_map
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

ENGINES = {"packed": PackedEngine, "reference": ReferenceEngine}
TIMES = {"train_seconds", "eval_seconds", "tokens_per_second"}
PREDICTED = {"predicted_memory_bytes", "memory_error_percent"}
"""Figures of the packed engine only."""


@pytest.fixture(params=list(ENGINES))
def engine_class(request):
    return ENGINES[request.param]


def make(bench, engine_class, folder, config=None):
    base = own_base((config or bench.trial()).model, CPU)
    return engine_class(base, DataCatalog(base.tokenizer, bench.scratch), folder)


@pytest.fixture
def engine(bench, engine_class, tmp_path):
    made = make(bench, engine_class, tmp_path / "trials")
    assert type(made) is engine_class
    return made


def run(engine, config, number=0, shorter=()):
    engine.admit(number, config, shorter)
    return drain(engine)


def told(events):
    """Kinds and steps in order; a kind that repeats from step to step is told once."""
    return [(type(event).__name__, event.step) for event in events]


def general_text(bench):
    return {"forgetting": str(bench.data_folder / "general.jsonl")}


# Order of events

PER_EPOCH = 6  # 24 rows in micro-batches of 4


@pytest.mark.parametrize(
    ("training", "evaluated", "last"),
    [
        pytest.param({"num_train_epochs": 2}, [6, 12], 12, marks=pytest.mark.slow),
        ({"num_train_epochs": 2, "eval_steps": 5}, [5, 10, 12], 12),
        ({"max_steps": 8}, [6, 8], 8),
        pytest.param({"max_steps": 4, "num_train_epochs": 3}, [4], 4, marks=pytest.mark.slow),
        pytest.param({"gradient_accumulation_steps": 4, "num_train_epochs": 2}, [2, 4], 4, marks=pytest.mark.slow),
        ({"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2}, [3], 3),
    ],
    ids=str,
)
def test_every_step_is_logged_then_evaluated_then_the_trial_is_finished(bench, engine, training, evaluated, last):
    events = run(engine, bench.trial(**training))
    expected = []
    for step in range(1, last + 1):
        expected.append(("Logged", step))
        if step in evaluated:
            expected.append(("Evaluated", step))
    assert told(events) == [*expected, ("Finished", last)]
    assert [event.evaluation for event in only(events, Evaluated)] == list(range(1, len(evaluated) + 1))
    assert events[-1].epoch == pytest.approx(events[-2].epoch)
    assert engine.active == ()


def test_logging_steps_thins_out_the_log_but_not_the_last_step(bench, engine):
    events = run(engine, bench.trial(max_steps=8, logging_steps=3))
    logged = [("Logged", 3), ("Logged", 6), ("Evaluated", 6), ("Logged", 8), ("Evaluated", 8)]
    assert told(events) == [*logged, ("Finished", 8)]


def test_final_figures_are_plain_finite_numbers(bench, engine):
    config = bench.trial(data=general_text(bench))
    events = run(engine, config)
    metrics = events[-1].metrics
    assert all(type(value) is float and math.isfinite(value) for value in metrics.values())
    assert metrics.keys() <= MEASURES.keys()
    assert metrics["eval_loss"] == events[-2].eval_loss
    assert metrics["forgetting"] == events[-2].forgetting_loss - engine.base_losses(config)[1]
    assert metrics["peak_memory_bytes"] > metrics["base_bytes"] > 0


# Equal numbers

BEST = {"load_best_model_at_end": True, "learning_rate": 0.1, "num_train_epochs": 5}
"""The texts are random words: what is learned beyond the first epochs makes the evaluation worse."""
MILD = {"learning_rate": 1e-2, "num_train_epochs": 6}
"""A rate at which the last bits, in which the engines differ, do not grow: the fourth evaluation is the best."""
WARM = {"warmup_steps": 5, "learning_rate": 5e-3}
EQUAL = {
    "plain": {},
    "two epochs and a head": {"num_train_epochs": 2, "lora": {"target_modules": "all-linear+head"}},
    "accumulation": {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "num_train_epochs": 3},
    "weight decay and clipping": {"weight_decay": 0.3, "max_grad_norm": 0.1, "learning_rate": 1e-2},
    "max_steps": {"max_steps": 9},
    "evaluations between": {"eval_steps": 4, "per_device_eval_batch_size": 3},
    "dropout": {"lora": {"lora_dropout": 0.3}, "learning_rate": 1e-2},
    "rslora on half of the layers": {"lora": {"use_rslora": True, "layers": "last_half", "r": 8}},
    "gaussian": {"lora": {"init_lora_weights": "gaussian"}},
    "orthogonal": {"lora": {"init_lora_weights": "orthogonal"}},
    "random": {"lora": {"init_lora_weights": False}},
    "warm-up": {"lr_scheduler_type": "constant_with_warmup", **WARM},
    "warm-up by share": {"lr_scheduler_type": "constant_with_warmup", "warmup_ratio": 0.5},
    "linear": {"lr_scheduler_type": "linear", **WARM, "num_train_epochs": 2},
    "cosine": {"lr_scheduler_type": "cosine", **WARM, "num_train_epochs": 2},
    "warmup_stable_decay": {"lr_scheduler_type": "warmup_stable_decay", "warmup_steps": 2, "decay_steps": 5},
    "decay by default": {"lr_scheduler_type": "warmup_stable_decay", "num_train_epochs": 3},
    "sgd": {"optim": "sgd", "learning_rate": 0.5, "weight_decay": 0.1},
    "LoRA+": {"loraplus_lr_ratio": 8.0, "weight_decay": 0.1},
    "gradient checkpointing": {"gradient_checkpointing": True, "lora": {"lora_dropout": 0.2}},
    "rows of several examples": {"data": {"packing": True, "max_length": 48}, "num_train_epochs": 3},
    "another seed": {"seed": 5},
    "the best checkpoint": {**BEST, **MILD},
    "early stopping": {**BEST, **MILD, "early_stopping_patience": 1},
}


AT_ONCE = [
    *("two epochs and a head", "accumulation", "dropout", "rslora on half of the layers", "cosine", "LoRA+"),
    *("gradient checkpointing", "rows of several examples", "early stopping"),
]


@pytest.mark.parametrize("case", sample(EQUAL, AT_ONCE))
def test_both_engines_give_the_same_numbers(bench, tmp_path, case):
    settings = dict(EQUAL[case])
    data = {**general_text(bench), **settings.pop("data", {})}
    config = bench.trial(data=data, **settings)
    packed, reference = (make(bench, ENGINES[name], tmp_path / name) for name in ENGINES)
    left, right = run(packed, config), run(reference, config)
    assert told(left) == told(right)
    for one, other in zip(only(left, Logged), only(right, Logged), strict=True):
        assert one.epoch == other.epoch
        assert one.loss == pytest.approx(other.loss, abs=1e-9)
        assert one.grad_norm == pytest.approx(other.grad_norm, abs=1e-9)
        assert one.learning_rate == pytest.approx(other.learning_rate, rel=1e-12)
    for one, other in zip(only(left, Evaluated), only(right, Evaluated), strict=True):
        assert one.eval_loss == pytest.approx(other.eval_loss, abs=1e-9)
        assert (one.forgetting_loss is None) == (other.forgetting_loss is None)
        assert one.costs.keys() == other.costs.keys()
    same_metrics(left[-1].metrics, right[-1].metrics)
    same_files(packed.trial_folder(0), reference.trial_folder(0), 1e-8)


def same_metrics(one, other):
    assert one.keys() - PREDICTED == other.keys()
    for name in (name for name in other.keys() - TIMES if not name.endswith("_bytes") or "adapter" in name):
        assert one[name] == pytest.approx(other[name], rel=1e-9, abs=1e-9), name


def same_files(one, other, tolerance):
    names = sorted(str(path.relative_to(one)) for path in one.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(other)) for path in other.rglob("*") if path.is_file())
    assert "adapter/adapter_model.safetensors" in names
    for name in names:
        if name.endswith(".json"):
            assert (one / name).read_text() == (other / name).read_text()
            continue
        mine, theirs = load_file(one / name), load_file(other / name)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert tensor.dtype == theirs[key].dtype
            assert float((tensor - theirs[key]).abs().max()) < tolerance, (name, key)


def test_the_bare_base_measures_the_same_on_both(bench, tmp_path):
    config = bench.trial(data=general_text(bench))
    packed, reference = (make(bench, ENGINES[name], tmp_path / name) for name in ENGINES)
    assert packed.base_losses(config) == pytest.approx(reference.base_losses(config), abs=1e-10)
    assert reference.base_losses(bench.trial())[1] is None


def test_eight_bit_moments_give_nearly_the_same(bench, tmp_path):
    """Their rounding takes up the last bits of the gradients, in which the engines differ."""
    config = bench.trial(optim="adamw_8bit", lora={"r": 64}, dtype="float32", learning_rate=1e-3)
    left, right = (run(make(bench, ENGINES[name], tmp_path / name, config), config) for name in ENGINES)
    assert left[-1].metrics["optimizer_bytes"] == right[-1].metrics["optimizer_bytes"]
    for one, other in zip(only(left, Logged), only(right, Logged), strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-3)


# Resuming

RESUMED = {
    "plain": {"lora": {"lora_dropout": 0.2}, "lr_scheduler_type": "cosine", "warmup_steps": 3, "num_train_epochs": 2},
    "accumulation": {
        "per_device_train_batch_size": 5,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 4,
        "weight_decay": 0.1,
        "eval_steps": 4,
    },
    "8 bit": {"optim": "adamw_8bit", "lora": {"r": 64}, "lr_scheduler_type": "linear"},
    "sgd": {"optim": "sgd", "loraplus_lr_ratio": 4.0, "learning_rate": 0.1},
    "early stopping": {**BEST, "early_stopping_patience": 3, "eval_steps": 2},
}


@pytest.mark.parametrize(
    ("case", "every"),
    [("accumulation", 3), ("early stopping", 7), *(pytest.param(case, 1, marks=pytest.mark.slow) for case in RESUMED)],
)
def test_taken_up_after_any_step_the_rest_is_bit_equal(bench, engine_class, tmp_path, case, every):
    config = bench.trial(dtype="float32", **RESUMED[case])
    control = make(bench, engine_class, tmp_path / "control", config)
    control.admit(0, config)
    calls = []
    while control.active:
        control.save_checkpoints()
        shutil.copytree(tmp_path / "control", tmp_path / str(len(calls)))
        calls.append(control.step())
    final = calls[-1][-1]
    # Every step on the reference engine, whose state is here only tested; for the packed one, see test_resume.
    for start in range(0, len(calls), every if engine_class is ReferenceEngine else 5):
        engine = make(bench, engine_class, tmp_path / str(start), config)
        events = run(engine, config)
        expected = [event for call in calls[start:] for event in call]
        step = min(event.step for event in expected)
        assert told(events) == [(kind, at) for kind, at in told(expected) if at >= step]
        for one, other in zip(only(events, Logged), only(expected, Logged), strict=True):
            assert one == other
        assert {k: v for k, v in events[-1].metrics.items() if k not in TIMES} == {
            k: v for k, v in final.metrics.items() if k not in TIMES
        }
        same_adapter = [
            (folder / "0000/adapter/adapter_model.safetensors").read_bytes()
            for folder in (tmp_path / str(start), tmp_path / "control")
        ]
        assert same_adapter[0] == same_adapter[1]


def test_no_pickle_is_ever_written(bench, engine, tmp_path):
    engine.admit(0, bench.trial(num_train_epochs=2))
    suffixes = set()
    while engine.active:
        engine.step()
        engine.save_checkpoints()
        suffixes |= {path.suffix for path in tmp_path.rglob("*") if path.is_file() and "trials" in path.parts}
    assert suffixes <= {".safetensors", ".json"}


def test_the_checkpoint_of_another_configuration_is_refused(bench, engine):
    engine.admit(0, bench.trial())
    engine.step()
    engine.save_checkpoints()
    engine.discard(0)
    with pytest.raises(CheckpointError, match="another configuration"):
        engine.admit(0, bench.trial(learning_rate=2e-3))


# Trials that come and go


def test_a_discarded_trial_leaves_room_and_no_trace(bench, engine):
    config = bench.trial(num_train_epochs=2)
    fresh = run(engine, config, number=0)
    engine.admit(1, bench.trial(learning_rate=1e-1, lora={"r": 16}))
    engine.step()
    engine.step()
    engine.discard(1)
    engine.discard(7)  # nobody
    assert engine.active == ()
    again = run(engine, config, number=2)
    assert [replace(event, number=0) for event in only(again, Logged)] == only(fresh, Logged)


def test_a_discarded_trial_comes_back_where_its_checkpoint_is(bench, engine):
    config = bench.trial(num_train_epochs=2)
    whole = run(engine, config, number=0)
    engine.admit(1, config)
    first = [event for _ in range(4) for event in engine.step()]
    engine.save_checkpoints()
    engine.step()
    engine.discard(1)
    rest = run(engine, config, number=1)
    assert [replace(event, number=0) for event in only(first + rest, Logged)] == only(whole, Logged)


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_rate_that_blows_up_ends_as_diverged_with_figures(bench, engine_class, tmp_path, max_grad_norm):
    config = bench.trial(dtype="float32", learning_rate=1e30, max_grad_norm=max_grad_norm)
    engine = make(bench, engine_class, tmp_path / "trials", config)
    events = run(engine, config)
    assert told(events) == [("Logged", 1), ("Diverged", 2)]
    assert "at optimizer step 2" in events[-1].reason
    assert "nan" in events[-1].reason or "inf" in events[-1].reason
    again = run(engine, bench.trial(dtype="float32"), number=1)
    assert isinstance(again[-1], Finished)


def test_an_evaluation_that_is_not_finite_ends_as_diverged(bench, engine, monkeypatch):
    real = evaluation.evaluate

    def blown(*arguments, **keywords):
        return [replace(losses, nll=losses.nll * np.nan) for losses in real(*arguments, **keywords)]

    monkeypatch.setattr("lora_lab.training.assessment.evaluate", blown)
    events = run(engine, bench.trial())
    assert told(events)[-2:] == [("Logged", PER_EPOCH), ("Diverged", PER_EPOCH)]
    assert "eval_loss is nan" in events[-1].reason


def test_an_adapter_that_the_loss_does_not_reach_fails_with_the_explanation(bench, engine_class, tmp_path):
    base = own_base(bench.trial().model, CPU)
    base.model.model.layers[0].add_module("spare", torch.nn.Linear(32, 32, dtype=torch.float64))
    base.model.requires_grad_(requires_grad=False)
    base = replace(base, linears=linear_map(base.model))
    engine = engine_class(base, DataCatalog(base.tokenizer, bench.scratch), tmp_path / "trials")
    events = run(engine, bench.trial(lora={"target_modules": ("q_proj", "spare")}))
    [failed] = only(events, Failed)
    assert (failed.step, len(events)) == (1, 1)
    assert "1 of 3 adapted modules get no gradient (first: model.layers.0.spare)" in failed.reason


@pytest.mark.parametrize("at", [1, 3])
def test_a_step_that_does_not_fit_alone_ends_out_of_memory(bench, engine, monkeypatch, at):
    engine.admit(0, bench.trial())
    real, calls = torch.autograd.backward, []

    def backward(*arguments, **keywords):
        calls.append(None)
        if len(calls) == at:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return real(*arguments, **keywords)

    monkeypatch.setattr(torch.autograd, "backward", backward)
    events = drain(engine)
    assert told(events) == [("Logged", step) for step in range(1, at)] + [("OutOfMemory", at - 1)]
    reason = only(events, OutOfMemory)[0].reason
    assert reason.startswith("does not fit even alone (")
    assert "tried to allocate 2 GiB); lower per_device_train_batch_size" in reason
    assert isinstance(run(engine, bench.trial(), number=1)[-1], Finished)


def test_targets_that_match_nothing_are_refused_on_admission(bench, engine):
    with pytest.raises(InputError, match="matches no linear module"):
        engine.admit(0, bench.trial(lora={"target_modules": ("nowhere",)}))
    assert engine.active == ()


def test_a_trial_is_there_from_admission_to_its_end(bench, engine):
    with pytest.raises(KeyError):
        engine.trial(3)
    config = bench.trial(num_train_epochs=2)
    engine.admit(3, config)
    trial = engine.trial(3)
    assert (trial.number, trial.config, trial.progress.step) == (3, config, 0)
    assert trial.data.train.fingerprint == bench.data.splits(config.data).train.fingerprint
    for number in (0, 4):
        with pytest.raises(KeyError):
            engine.trial(number)
        with pytest.raises(KeyError):
            engine.memory(number)
        with pytest.raises(KeyError):
            engine.save_adapter(number, bench.scratch / "nobody")
    engine.step()
    assert engine.trial(3) is trial
    assert trial.progress.step == 1
    drain(engine)
    assert trial.progress.finished
    with pytest.raises(KeyError):
        engine.trial(3)


def test_what_a_trial_needs_is_measured_on_admission_and_stands_in_its_figures(bench, engine):
    small, large = bench.trial(lora={"r": 2}), bench.trial(lora={"r": 32}, per_device_train_batch_size=8)
    peaks = []
    for number, config in enumerate((small, large, small)):
        engine.admit(number, config)
        memory = engine.memory(number)
        assert engine.trial(number).progress.step == 0
        assert drain(engine)[-1].metrics["peak_memory_bytes"] == memory.peak_bytes
        peaks.append(memory.peak_bytes)
    assert peaks[0] == peaks[2] < peaks[1]


def test_every_trial_has_a_folder_of_its_own(engine, tmp_path):
    assert engine.trial_folder(7) == tmp_path / "trials" / "0007"


def test_speed_is_known_from_the_first_step(bench, engine):
    assert engine.tokens_per_second == 0.0
    engine.admit(0, bench.trial())
    engine.step()
    assert engine.tokens_per_second > 0


# What is left


def test_an_adapter_can_be_written_at_any_time_and_training_goes_on_as_if_not(bench, engine, tmp_path):
    config = bench.trial(dtype="float32", lora={"lora_dropout": 0.2})
    undisturbed = run(engine, config, number=0)
    engine.admit(1, config)
    adapters, events = [], []
    while engine.active:
        folder = tmp_path / f"adapter-{len(adapters)}"
        engine.save_adapter(1, folder)
        adapters.append(load_file(folder / "adapter_model.safetensors"))
        events += engine.step()
    assert [replace(event, number=0) for event in only(events, Logged)] == only(undisturbed, Logged)
    # B begins at zero, and both sides move with every step
    assert not any(tensor.any() for name, tensor in adapters[0].items() if "lora_B" in name)
    for one, other in itertools.pairwise(adapters):
        assert one.keys() == other.keys()
        assert all(not torch.equal(one[name], other[name]) for name in one if "lora_B" in name)


@pytest.mark.parametrize("targets", ["all-linear", "all-linear+head", "attention"])
def test_plain_peft_loads_the_adapter_and_gives_the_eval_loss(bench, engine, targets):
    config = bench.trial(lora={"target_modules": targets, "use_rslora": True}, learning_rate=1e-2)
    engine.admit(0, config)
    final = drain(engine)[-1]
    base = AutoModelForCausalLM.from_pretrained(bench.base_folder, dtype=torch.float64)
    model = PeftModel.from_pretrained(base, engine.trial_folder(final.number) / "adapter").eval()
    held_out = bench.data.splits(config.data).eval
    sums, labels = 0.0, 0
    for ids, wanted in zip(held_out.input_ids, held_out.labels, strict=True):
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1]
        sums += float(functional.cross_entropy(logits, torch.from_numpy(wanted)[1:], reduction="sum"))
        labels += len(wanted) - 1
    assert sums / labels == pytest.approx(final.metrics["eval_loss"], abs=1e-9)


def test_shorter_runs_are_read_off(bench, engine):
    longest, shorter = (bench.trial(data=general_text(bench), num_train_epochs=epochs) for epochs in (3, 1))
    events = run(engine, longest, shorter=[shorter])
    [milestone] = only(events, Milestone)
    alone = run(engine, shorter, number=1)[-1]
    assert (milestone.epochs, milestone.step) == (1, PER_EPOCH)
    assert {k: v for k, v in milestone.metrics.items() if k not in TIMES} == {
        k: v for k, v in alone.metrics.items() if k not in TIMES
    }
    files = TrialFolder(engine.trial_folder(milestone.number)).shorter_run(milestone.epochs)
    assert (files.adapter / "adapter_model.safetensors").read_bytes() == (
        engine.trial_folder(alone.number) / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_what_ends_early_is_what_was_measured(bench, engine):
    """Adapter, general text and scores are those of the best evaluation, though the trial went on beyond it."""
    scored = {"metrics": ["token_accuracy", "perplexity"], "at": "end"}
    config = bench.trial(data=general_text(bench), evaluation=scored, **{**BEST, "early_stopping_patience": 2})
    events = run(engine, config)
    final, curve = events[-1], {event.evaluation: event.eval_loss for event in only(events, Evaluated)}
    best = int(final.metrics["best_evaluation"])
    assert best == min(curve, key=curve.__getitem__)
    assert len(curve) == best + 2 < 5
    assert final.metrics["best_step"] == best * PER_EPOCH
    assert final.metrics["steps"] == final.step == len(curve) * PER_EPOCH
    assert all(event.forgetting_loss is None and not event.scores for event in only(events, Evaluated))

    shorter = bench.trial(data=general_text(bench), evaluation=scored, **{**BEST, "num_train_epochs": best})
    apart = run(engine, shorter, number=1)[-1]
    of_adapter = {"eval_loss", "forgetting", "token_accuracy", "perplexity", "best_step", "best_evaluation"}
    assert {name: final.metrics[name] for name in of_adapter} == {name: apart.metrics[name] for name in of_adapter}
    mine, other = (TrialFolder(engine.trial_folder(number)) for number in (0, 1))
    for one, two in (
        (mine.adapter / "adapter_model.safetensors", other.adapter / "adapter_model.safetensors"),
        (mine.forgetting, other.forgetting),
        (mine.evaluation(best, "token_accuracy"), other.evaluation(best, "token_accuracy")),
    ):
        assert one.read_bytes() == two.read_bytes()


def test_a_branch_goes_on_as_the_run_trained_apart(bench, engine):
    decay = {"lr_scheduler_type": "warmup_stable_decay", "decay_ratio": 0.5}
    longest, shorter = (bench.trial(num_train_epochs=epochs, **decay) for epochs in (3, 2))
    events = run(engine, longest, shorter=[shorter])
    [milestone] = only(events, Milestone)
    assert milestone.is_branch
    apart = run(engine, shorter, number=1)
    files = TrialFolder(engine.trial_folder(milestone.number)).shorter_run(milestone.epochs)
    shutil.move(files.path, engine.trial_folder(2))
    rest = run(engine, shorter, number=2)
    assert rest[0].step == milestone.step + 1
    assert [replace(event, number=1) for event in only(rest, Logged)] == only(apart, Logged)[milestone.step :]
    assert rest[-1].metrics["eval_loss"] == apart[-1].metrics["eval_loss"]


# Both on one base


def test_engines_that_share_a_base_do_not_disturb_each_other(bench, tmp_path):
    config = bench.trial()
    base = own_base(config.model, CPU)
    data = DataCatalog(base.tokenizer, bench.scratch)
    reference = ReferenceEngine(base, data, tmp_path / "reference")
    packed = PackedEngine(base, data, tmp_path / "packed")
    alone = [run(make(bench, ENGINES[name], tmp_path / f"alone-{name}"), config) for name in ENGINES]
    reference.admit(0, bench.trial(dtype="float64", lora={"use_dora": True}))
    packed.admit(0, config)
    while packed.active:
        packed.step()
        reference.step()
    drain(reference)
    assert only(run(packed, config), Logged) == only(alone[0], Logged)
    assert only(run(reference, config), Logged) == only(alone[1], Logged)


def test_making_a_trial_leaves_the_global_generators_alone(bench, engine):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    engine.admit(0, bench.trial())
    drain(engine)
    assert torch.equal(torch.rand(3), expected)


def test_diverged_is_told_once(bench, engine):
    assert only(run(engine, bench.trial()), Diverged) == []
