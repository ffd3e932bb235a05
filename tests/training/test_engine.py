"""What an engine tells about its trials, and the files that it leaves."""

from __future__ import annotations

import itertools
import math
import resource
import time
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from samples import sample
from transformers import AutoModelForCausalLM
from workshop import CPU, VOCABULARY, drain, only, own_base

from lora_lab.common.errors import CheckpointError, InputError, StorageError
from lora_lab.study.events import Diverged, Evaluated, Failed, Finished, Logged, OutOfMemory
from lora_lab.study.settings import ModelSettings
from lora_lab.training import assessment
from lora_lab.training.base.architecture import linear_map
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.packed_engine import PackedEngine


def general_text(bench):
    return {"forgetting": str(bench.data_folder / "general.jsonl")}


def evaluation(engine, name, number=0):
    saved = load_file(engine.trial_folder(number) / "evaluations" / f"{name}.safetensors")
    return saved["nll"], saved["label_tokens"]


@torch.no_grad()
def losses_alone(model, dataset) -> torch.Tensor:
    """[n]: every example's summed loss, one example at a time, by plain `transformers`."""
    sums = []
    for ids, labels in zip(dataset.input_ids, dataset.labels, strict=True):
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1]
        sums.append(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)[1:], reduction="sum"))
    return torch.stack(sums)


# The end of a trial


def test_time_of_evaluations_is_no_training_time_and_is_shared_by_those_beside_each_other(bench, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))  # whatever is timed takes a second
    configs = [
        bench.trial(num_train_epochs=2, data={"forgetting": str(bench.data_folder / "general.jsonl")}, seed=seed)
        for seed in (0, 1)
    ]
    first, second = only(bench.run(*configs), Finished)
    assert first.metrics["train_seconds"] + second.metrics["train_seconds"] == pytest.approx(12), "steps of both"
    for final in (first, second):
        assert final.metrics["eval_seconds"] == pytest.approx(2 / 2 + 1), "two for both, and the forgetting text alone"


def test_final_figures_are_exact(bench):
    config = bench.trial(lora={"r": 4, "target_modules": "all-linear"}, num_train_epochs=2)
    engine = bench.engine()
    engine.admit(0, config)
    train = engine.trial(0).data.train
    events = drain(engine)
    [final] = only(events, Finished)
    # Per layer q 32+32, k and v 32+16 each, o 32+32, gate, up and down 32+64 each; two layers, rank 4
    parameters = 4 * 2 * (64 + 48 + 48 + 64 + 3 * 96)
    base = 2 * VOCABULARY * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32) + 32
    tokens = 2 * sum(len(row) for row in train.input_ids)
    metrics = dict(final.metrics)
    seconds, speed = metrics.pop("train_seconds"), metrics.pop("tokens_per_second")
    assert 0 < seconds < 60
    assert 0 < metrics.pop("eval_seconds") < 60
    assert speed == pytest.approx(tokens / seconds)
    peak = metrics.pop("peak_memory_bytes")
    assert metrics.pop("base_bytes") >= 8 * base
    assert peak > metrics.pop("activation_bytes") + metrics.pop("logits_bytes") + 8 * base
    assert metrics == {
        "predicted_memory_bytes": peak,
        "memory_error_percent": 0,
        "gradient_bytes": 8 * parameters,
        "quantization_bytes": 0,
        "eval_loss": only(events, Evaluated)[-1].eval_loss,
        "trainable_params": parameters,
        "trainable_percent": 100 * parameters / (base + parameters),
        "adapter_bytes": 8 * parameters,
        "optimizer_bytes": 16 * parameters,
        "train_tokens": tokens,
        "total_flos": tokens * (4 * base + 6 * parameters),
        "steps": 12,
        "epochs": 2,
    }
    assert (final.step, final.epoch) == (12, 2.0)


def test_every_final_figure_is_a_plain_float(bench):
    [final] = only(bench.run(bench.trial(data=general_text(bench))), Finished)
    assert all(type(value) is float and math.isfinite(value) for value in final.metrics.values())


@pytest.mark.parametrize("targets", ["all-linear", "all-linear+head", "attention"])
def test_the_adapter_folder_gives_peft_the_eval_loss_that_was_logged(bench, targets):
    config = bench.trial(lora={"target_modules": targets, "use_rslora": True}, learning_rate=1e-2)
    engine = bench.engine()
    engine.admit(0, config)
    held_out = engine.trial(0).data.eval
    [final] = only(drain(engine), Finished)
    base = AutoModelForCausalLM.from_pretrained(bench.base_folder, dtype=torch.float64)
    before = losses_alone(base.eval(), held_out)
    sums = losses_alone(PeftModel.from_pretrained(base, engine.trial_folder(final.number) / "adapter").eval(), held_out)
    labels = sum(held_out.label_tokens(i) for i in range(len(held_out)))
    assert float(sums.sum()) / labels == pytest.approx(final.metrics["eval_loss"], abs=1e-9)
    assert abs(float(sums.sum() - before.sum())) / labels > 1e-3, "the adapter does nothing"
    nll, _ = evaluation(engine, "eval-0001")
    assert (sums - nll).abs().max() < 1e-8


# Evaluations


def test_the_losses_of_every_example_are_kept_and_their_mean_is_the_eval_loss(bench):
    engine = bench.engine()
    configs = [bench.trial(num_train_epochs=2), bench.trial(num_train_epochs=3, seed=1, per_device_eval_batch_size=3)]
    for number, config in enumerate(configs):
        engine.admit(number, config)
    held_out = engine.trial(0).data.eval
    events = drain(engine)
    for event in only(events, Evaluated):
        nll, label_tokens = evaluation(engine, f"eval-{event.evaluation:04d}", event.number)
        assert nll.dtype == torch.float64
        assert label_tokens.tolist() == [held_out.label_tokens(i) for i in range(len(held_out))]
        assert float(nll.sum() / label_tokens.sum()) == pytest.approx(event.eval_loss, rel=1e-14)
    names = sorted(path.name for path in (engine.trial_folder(1) / "evaluations").iterdir())
    assert names == [f"eval-000{number}.safetensors" for number in (1, 2, 3)]


def test_the_bare_base_is_measured_whatever_was_trained_before(bench):
    config = bench.trial(data=general_text(bench))
    engine = bench.engine()
    splits = bench.data.splits(config.data)
    base = AutoModelForCausalLM.from_pretrained(bench.base_folder, dtype=torch.float64).eval()
    expected = [
        float(losses_alone(base, dataset).sum()) / sum(dataset.label_tokens(i) for i in range(len(dataset)))
        for dataset in (splits.eval, splits.forgetting)
    ]
    engine.admit(0, config)
    engine.step()
    assert engine.base_losses(config) == pytest.approx(expected, abs=1e-10)
    assert engine.base_losses(bench.trial()) == (pytest.approx(expected[0], abs=1e-10), None)


def test_forgetting_is_what_the_loss_on_general_text_rose_by(bench):
    config = bench.trial(data=general_text(bench), num_train_epochs=2, learning_rate=1e-2)
    engine = bench.engine()
    engine.admit(0, config)
    events = drain(engine)
    first, last = only(events, Evaluated)
    [final] = only(events, Finished)
    assert first.forgetting_loss is None
    _, before = engine.base_losses(config)
    assert final.metrics["forgetting"] == last.forgetting_loss - before
    nll, label_tokens = evaluation(engine, "forgetting")
    assert len(nll) == 7
    assert float(nll.sum() / label_tokens.sum()) == pytest.approx(last.forgetting_loss, rel=1e-14)


def test_without_general_text_there_is_no_forgetting(bench):
    events = bench.run(bench.trial())
    assert "forgetting" not in only(events, Finished)[0].metrics
    assert all(event.forgetting_loss is None for event in only(events, Evaluated))


@pytest.mark.parametrize(
    ("training", "logged", "evaluated"),
    [
        ({"num_train_epochs": 2}, range(1, 13), {6: 1, 12: 2}),
        ({"num_train_epochs": 2, "eval_steps": 5}, range(1, 13), {5: 1, 10: 2, 12: 3}),
        ({"max_steps": 8}, range(1, 9), {6: 1, 8: 2}),
        ({"max_steps": 4, "num_train_epochs": 3}, range(1, 5), {4: 1}),
        ({"max_steps": 8, "logging_steps": 3}, (3, 6, 8), {6: 1, 8: 2}),
        ({"max_steps": 4, "logging_steps": 100}, (4,), {4: 1}),
        ({"gradient_accumulation_steps": 4, "num_train_epochs": 2}, range(1, 5), {2: 1, 4: 2}),
    ],
    ids=str,
)
def test_what_is_logged_and_evaluated_when(bench, training, logged, evaluated):
    events = bench.run(bench.trial(**training))
    assert [event.step for event in only(events, Logged)] == list(logged)
    assert {event.step: event.evaluation for event in only(events, Evaluated)} == evaluated
    assert isinstance(events[-1], Finished)
    assert len(only(events, Finished)) == 1


# Steps


def test_a_step_tells_the_rate_that_it_used_and_the_norm_before_clipping(bench):
    schedule = {"lr_scheduler_type": "linear", "warmup_steps": 2, "learning_rate": 1e-3, "max_steps": 4}
    free, clipped = (only(bench.run(bench.trial(**schedule, max_grad_norm=m)), Logged) for m in (0.0, 1e-6))
    assert [event.learning_rate for event in free] == [0.0, 0.0005, 0.001, 0.0005]
    assert free[0].grad_norm == clipped[0].grad_norm > 1e-2
    assert free[0].loss == clipped[0].loss


def test_the_first_loss_is_the_bare_bases_on_the_first_batch(bench):
    config = bench.trial(max_steps=1)
    engine = bench.engine()
    engine.admit(0, config)
    slot = engine.trial(0)
    [rows] = slot.progress.plan.micro_batches(0)
    train = slot.data.train
    base = AutoModelForCausalLM.from_pretrained(bench.base_folder, dtype=torch.float64).eval()
    expected = losses_alone(base, train)[rows].sum() / sum(train.label_tokens(int(i)) for i in rows)
    assert only(engine.step(), Logged)[0].loss == pytest.approx(float(expected), abs=1e-10)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_of_lower_precision_trains_adapters_in_float32(bench, dtype):
    config = bench.trial(dtype=dtype, num_train_epochs=10, learning_rate=1e-2)
    engine = bench.engine(dtype=dtype)
    engine.admit(0, config)
    assert engine.trial(0).parameters.dtype == torch.float32
    losses = [event.loss for event in only(drain(engine), Logged)]
    assert sum(losses[-6:]) < 0.85 * sum(losses[:6])
    adapter = load_file(engine.trial_folder(0) / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}


def test_bfloat16_stays_near_float32(bench):
    runs = {
        dtype: only(bench.run(bench.trial(dtype=dtype, learning_rate=5e-3, num_train_epochs=3), dtype=dtype), Logged)
        for dtype in ("float32", "bfloat16")
    }
    pairs = zip(runs["float32"], runs["bfloat16"], strict=True)
    assert max(abs(a.loss - b.loss) for a, b in pairs) < 0.05


# Trials that cannot go on


@pytest.fixture
def base_with_a_dead_end(bench):
    """A base with a linear module that its forward pass never calls."""
    base = own_base(ModelSettings(model_name_or_path=str(bench.base_folder), dtype="float64"), CPU)
    base.model.model.layers[0].add_module("spare", torch.nn.Linear(32, 32, dtype=torch.float64))
    base.model.requires_grad_(requires_grad=False)
    return replace(base, linears=linear_map(base.model))


def test_an_adapter_that_the_loss_does_not_reach_fails_its_trial_with_the_explanation(bench, base_with_a_dead_end):
    engine = PackedEngine(
        base_with_a_dead_end, DataCatalog(base_with_a_dead_end.tokenizer, bench.scratch), bench.scratch
    )
    engine.admit(0, bench.trial(lora={"target_modules": ("q_proj", "spare")}))
    engine.admit(1, bench.trial(lora={"target_modules": ("q_proj",)}))
    events = drain(engine)
    [failed] = only(events, Failed)
    assert (failed.number, failed.step) == (0, 1)
    assert "1 of 3 adapted modules get no gradient (first: model.layers.0.spare)" in failed.reason
    assert "they would not train; adapt other modules" in failed.reason
    assert [event.number for event in only(events, Finished)] == [1]


def test_a_learning_rate_that_blows_up_ends_as_diverged_with_figures(bench):
    events = bench.run(
        bench.trial(dtype="float32", learning_rate=1e30, max_grad_norm=0.0),
        bench.trial(dtype="float32", num_train_epochs=2),
        dtype="float32",
    )
    [diverged] = only(events, Diverged)
    assert diverged.number == 0
    assert "optimizer step 2" in diverged.reason or "eval_loss" in diverged.reason
    assert [event.number for event in only(events, Finished)] == [1]
    assert all(math.isfinite(event.loss) for event in only(events, Logged))


class RunsOutOnce:
    """Stands before a function, and lets memory run out at its n-th call."""

    def __init__(self, function, at: int) -> None:
        self.function, self.left = function, at

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == -1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.function(*args, **kwargs)


@pytest.mark.parametrize(
    ("where", "at"),
    # The calls after these are of a trial that is alone: for it, there is no room to be made.
    sample(
        [("losses", at) for at in (0, 2, 3, 5, 6, 8, 11, 13)] + [("evaluation", at) for at in range(7)],
        [("losses", 3), ("evaluation", 4)],
    ),
)
def test_when_memory_runs_out_nothing_that_happened_is_lost(bench, monkeypatch, where, at):
    """Also in the middle of an evaluation: everything is told once, and every trial comes to its end."""
    common = {"num_train_epochs": 2, "per_device_train_batch_size": 8}
    configs = [
        bench.trial(**common, data=general_text(bench)),
        bench.trial(**common, seed=1, per_device_eval_batch_size=5),
        bench.trial(**common, seed=2, data=general_text(bench)),
    ]
    expected = told(bench.run(*configs))
    engine = bench.engine()
    for number, config in enumerate(configs):
        engine.admit(number, config)
    if where == "losses":
        monkeypatch.setattr(engine._model, "nll", RunsOutOnce(engine._model.nll, at))
    else:
        monkeypatch.setattr(assessment, "evaluate", RunsOutOnce(assessment.evaluate, at))
    events = []
    for _ in range(100):
        events += engine.step()
        for number in engine.set_aside:
            engine.admit(number, configs[number])
        engine.set_aside.clear()
        if not engine.active:
            break
    assert not only(events, OutOfMemory)
    got = told(events)
    assert got.keys() == expected.keys()
    assert len(events) == len(got)
    for key, value in expected.items():
        assert got[key] == pytest.approx(value, abs=1e-9)


def told(events):
    """The main figure of every event by what it is about."""
    figure = {Logged: "loss", Evaluated: "eval_loss", Finished: "epoch"}
    return {(type(e).__name__, e.number, e.step): getattr(e, figure[type(e)]) for e in events}


# Admission and what leaves the pack


def test_trials_come_and_go(bench):
    engine = bench.engine()
    assert engine.active == ()
    assert engine.step() == []
    for number in (7, 3, 5):
        engine.admit(number, bench.trial(seed=number))
    assert engine.active == (7, 3, 5)
    assert [event.number for event in engine.step()] == [7, 3, 5]
    engine.discard(3)
    engine.discard(99)
    assert engine.active == (7, 5)
    events = drain(engine)
    assert {event.number for event in events} == {7, 5}
    assert engine.active == ()
    assert not (engine.trial_folder(3) / "adapter").exists()


def test_a_discarded_trial_comes_back_where_its_checkpoint_is(bench):
    engine = bench.engine()
    config = bench.trial(num_train_epochs=2)
    engine.admit(0, config)
    for _ in range(4):
        engine.step()
    engine.save_checkpoints()
    engine.step()
    engine.discard(0)
    engine.admit(0, config)
    assert engine.step()[0].step == 5


def test_the_checkpoint_of_another_configuration_is_refused(bench):
    engine = bench.engine()
    engine.admit(0, bench.trial())
    engine.step()
    engine.save_checkpoints()
    engine.discard(0)
    for other in (bench.trial(learning_rate=2e-3), bench.trial(lora={"r": 8}), bench.trial(seed=1)):
        with pytest.raises(CheckpointError, match=r"another configuration.*delete this folder"):
            engine.admit(0, other)
    assert engine.active == ()


def test_an_adapter_that_fits_nothing_is_refused_on_admission(bench):
    engine = bench.engine()
    with pytest.raises(InputError, match="matches no linear module"):
        engine.admit(0, bench.trial(lora={"target_modules": ("c_attn",)}))
    assert engine.active == ()


def test_two_engines_on_one_base_do_not_disturb_each_other(bench):
    config = bench.trial(num_train_epochs=2)
    expected = only(bench.run(config), Logged)
    base = own_base(ModelSettings(model_name_or_path=str(bench.base_folder), dtype="float64"), CPU)
    data = DataCatalog(base.tokenizer, bench.scratch)
    first, second = (PackedEngine(base, data, bench.scratch / name) for name in ("first", "second"))
    first.admit(0, bench.trial(seed=4, learning_rate=1e-2))
    second.admit(0, config)
    first.step()
    losses = [only(second.step(), Logged)[0].loss]
    first.step()
    losses += [event.loss for event in only(drain(second), Logged)]
    assert losses == [event.loss for event in expected]


@pytest.mark.parametrize("limit", [300, 3000])
def test_a_full_disk_at_an_evaluation_or_an_adapter_is_named(bench, limit):
    """Losses of 10 examples take 300 to 500 bytes, the adapter more than 3000."""
    engine = bench.engine()
    engine.admit(0, bench.trial(max_steps=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StorageError, match=r"cannot write .*File too large; free space .* run the same command"):
            engine.step()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (engine.trial_folder(0) / "adapter").exists()
