"""A trial is put back to its best evaluation, and comes back from there, whatever happens meanwhile."""

from __future__ import annotations

import json

import pytest
import torch
from samples import sample
from workshop import CPU, drain, only, own_base

from lora_lab.common.errors import CheckpointError
from lora_lab.study.events import Evaluated, Finished, Logged
from lora_lab.training import assessment
from lora_lab.training.checkpoint import MANIFEST
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.reference_engine import ReferenceEngine

BEST = {"load_best_model_at_end": True, "learning_rate": 0.1, "num_train_epochs": 3}


def without_times(event):
    return {name: value for name, value in event.metrics.items() if name not in ("train_seconds", "tokens_per_second")}


def general(bench):
    return {"forgetting": str(bench.data_folder / "general.jsonl")}


def test_memory_that_runs_out_at_the_end_leaves_the_newest_adapter_in_training(bench, monkeypatch):
    """The evaluation is made again, and again of what the last step left."""
    config = bench.trial(data=general(bench), **BEST)
    expected = bench.run(config)
    engine = bench.engine()
    engine.admit(0, config)
    engine.admit(1, bench.trial(num_train_epochs=4, seed=5))
    engine.base_losses(config)
    whole, failed = assessment.evaluate, []

    def runs_out(*arguments, **keywords):
        if arguments[1] is engine.trial(0).data.forgetting and not failed:
            failed.append(True)
            assert not torch.equal(engine.trial(0).values(), newest)
            raise torch.OutOfMemoryError("out of memory")
        return whole(*arguments, **keywords)

    monkeypatch.setattr(assessment, "evaluate", runs_out)
    events = []
    while 0 in engine.active:
        events += engine.step()
        if 0 in engine.active:
            newest = engine.trial(0).values()
        engine.set_aside.clear()
    assert failed
    mine = [event for event in events if event.number == 0]
    for kind, name in ((Logged, "loss"), (Evaluated, "eval_loss")):
        figures = [getattr(event, name) for event in only(mine, kind)]
        assert figures == pytest.approx([getattr(event, name) for event in only(expected, kind)], abs=1e-9)
    [one], [other] = only(mine, Finished), only(expected, Finished)
    assert one.metrics["best_step"] == other.metrics["best_step"] < 18
    for name in ("eval_loss", "forgetting"):
        assert one.metrics[name] == pytest.approx(other.metrics[name], abs=1e-9)


@pytest.mark.parametrize(
    ("lora", "dtype"),
    sample(
        [
            ({"use_dora": True}, "float64"),
            ({"modules_to_save": ["lm_head"]}, "float64"),
            ({"init_lora_weights": "pissa"}, "float32"),
        ],
        [({"use_dora": True}, "float64")],
    ),
    ids=str,
)
def test_all_that_the_reference_engine_trains_is_put_back(bench, tmp_path, lora, dtype):
    """A run that goes on beyond its best evaluation leaves what a run that ends there leaves."""
    base = own_base(bench.model(dtype), CPU)
    engine = ReferenceEngine(base, DataCatalog(base.tokenizer, bench.scratch), tmp_path / "trials")
    metrics = []
    for number, epochs in enumerate((4, None)):
        shorter = epochs or int(metrics[0]["best_evaluation"])
        settings = BEST | {"num_train_epochs": shorter, "learning_rate": 0.03}
        engine.admit(number, bench.trial(dtype=dtype, lora=lora, **settings))
        metrics.append(only(drain(engine), Finished)[0].metrics)
    assert metrics[0]["best_step"] < metrics[0]["steps"], "it shows nothing"
    assert metrics[0]["eval_loss"] == metrics[1]["eval_loss"]
    one, other = (engine.trial_folder(number) / "adapter/adapter_model.safetensors" for number in (0, 1))
    assert one.read_bytes() == other.read_bytes()


def checkpoint(bench, **settings):
    """A trial of one evaluation with a checkpoint behind it: its engine's folder and its configuration."""
    config = bench.trial(**settings)
    engine = bench.engine()
    engine.admit(0, config)
    for _ in range(8):
        engine.step()
    engine.save_checkpoints()
    return engine, config


def test_a_checkpoint_holds_the_best_adapter_only_where_it_is_wanted(bench):
    plain, _ = checkpoint(bench, num_train_epochs=3)
    kept, config = checkpoint(bench, **BEST)
    sizes = [
        next((engine.trial_folder(0) / "checkpoint").glob("*.safetensors")).stat().st_size for engine in (plain, kept)
    ]
    parameters = kept.trial(0).parameters.nbytes
    assert parameters <= sizes[1] - sizes[0] < parameters + 200
    again = bench.engine(folder=kept._folder)
    again.admit(0, config)
    best = again.trial(0).progress
    assert best.counters.best.measured.step == 6
    assert torch.equal(best.best_parameters, kept.trial(0).progress.best_parameters)
    assert not torch.equal(best.best_parameters, again.trial(0).values())


def test_a_checkpoint_from_before_there_was_a_best_adapter_goes_on(bench):
    engine, config = checkpoint(bench, num_train_epochs=3)
    manifest = engine.trial_folder(0) / "checkpoint" / MANIFEST
    content = json.loads(manifest.read_text())
    del content["progress"]["best"]
    manifest.write_text(json.dumps(content))
    again = bench.engine(folder=engine._folder)
    again.admit(0, config)
    assert only(drain(again), Finished)[0].step == 18


@pytest.mark.parametrize(
    ("best", "problem"),
    [
        (None, "holds"),
        ({"measured": {"evaluation": -1, "step": 6, "eval_loss": 2.0, "scores": {}}}, "impossible"),
        ({"measured": {"evaluation": 1, "step": 6, "eval_loss": 2.0, "scores": {"f1": "x"}}}, "not readable"),
        ({"measured": {"evaluation": 1}}, "not readable"),
    ],
)
def test_a_checkpoint_that_contradicts_itself_is_refused(bench, best, problem):
    engine, config = checkpoint(bench, **BEST)
    manifest = engine.trial_folder(0) / "checkpoint" / MANIFEST
    content = json.loads(manifest.read_text())
    content["progress"]["best"] = best
    manifest.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=problem):
        bench.engine(folder=engine._folder).admit(0, config)
