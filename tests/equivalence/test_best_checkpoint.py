"""The best checkpoint and early stopping are those of `transformers.Trainer` with `EarlyStoppingCallback`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from oracle import DEVICE, largest_drift, read_adapter
from samples import sample
from transformers import EarlyStoppingCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from workshop import only, own_base

from lora_lab.study.best import Measured, judge
from lora_lab.study.events import Evaluated, Finished, Logged
from lora_lab.study.settings import TrainingSettings
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

ENGINES = {"packed": PackedEngine, "reference": ReferenceEngine}
BEST = {"load_best_model_at_end": True, "learning_rate": 2e-2, "num_train_epochs": 6}
"""The texts are random words: what is learned of them beyond the first epochs makes every other text less likely."""
ACCURATE = {"metrics": ["token_accuracy"], "at": "evaluations"}
CASES = {
    "the best of all": {},
    "patience": {"early_stopping_patience": 2},
    "patience by steps": {"early_stopping_patience": 3, "eval_steps": 2, "learning_rate": 1e-2},
    "threshold": {"early_stopping_patience": 1, "early_stopping_threshold": 0.02, "learning_rate": 2e-3, "seed": 3},
    "decay": {"early_stopping_patience": 1, "lr_scheduler_type": "cosine", "eval_steps": 4, "lora": {"r": 4}},
    "accuracy": {
        "metric_for_best_model": "token_accuracy",
        "early_stopping_patience": 4,
        "eval_steps": 3,
        "evaluation": ACCURATE,
    },
    "the last": {"learning_rate": 1e-5, "early_stopping_patience": 1, "num_train_epochs": 2},
}
STOPPING = {"patience", "patience by steps", "threshold", "decay", "accuracy"}
"""Those that end before their last step."""
LAST = {"threshold", "the last"}
"""Those whose last evaluation is the best."""


def make(lab, engine_class):
    base = own_base(lab.bench.model(), DEVICE)
    return engine_class(base, DataCatalog(base.tokenizer, lab.bench.scratch), lab.bench.scratch / "trials")


def trial(lab, name):
    return lab.trial(**(BEST | CASES[name]))


def train(engine, configs):
    """All events of these trials: in one pack, or one after the other."""
    events = []
    waiting = list(enumerate(configs))
    while waiting or engine.active:
        while waiting and (isinstance(engine, PackedEngine) or not engine.active):
            engine.admit(*waiting.pop(0))
        events += engine.step()
    return events


def assert_equals_trainer(engine, events, number, config, alone):
    mine = [event for event in events if event.number == number]
    steps, state = only(mine, Logged), alone.state
    assert len(steps) == len(alone.losses) == state.global_step
    assert max(abs(one.loss - loss) for one, loss in zip(steps, alone.losses, strict=True)) < 1e-9
    history = [entry for entry in state.log_history if "eval_loss" in entry]
    for one, entry in zip(only(mine, Evaluated), history, strict=True):
        assert one.step == entry["step"]
        assert abs(one.eval_loss - entry["eval_loss"]) < 1e-9
    [final] = only(mine, Finished)
    assert final.step == state.global_step
    assert final.metrics["best_step"] == state.best_global_step
    assert abs(final.metrics[config.training.metric_for_best_model] - state.best_metric) < 1e-9
    [best] = [one for one in only(mine, Evaluated) if one.step == state.best_global_step]
    assert final.metrics["eval_loss"] == best.eval_loss
    assert final.metrics["best_evaluation"] == best.evaluation
    assert largest_drift(read_adapter(engine.trial_folder(number) / "adapter"), alone.adapter) < 1e-8


@pytest.mark.parametrize(
    ("engine", "name"),
    sample(
        [(engine, name) for engine in ENGINES for name in CASES],
        [("packed", "patience"), ("reference", "accuracy")],
    ),
)
def test_a_trial_ends_and_leaves_what_trainer_would(lab64, engine, name):
    config, made = trial(lab64, name), make(lab64, ENGINES[engine])
    events, alone = train(made, [config]), lab64.alone(config)
    assert_equals_trainer(made, events, 0, config, alone)
    [final] = only(events, Finished)
    total = alone.state.max_steps
    assert (final.step < total) == (name in STOPPING)
    assert (final.metrics["best_step"] < final.step) == (name not in LAST), "the case shows nothing"
    assert ("stopped early" in final.reason) == (name in STOPPING)


@pytest.mark.slow
def test_all_in_one_pack_equal_trainer_and_a_neighbor_goes_on_undisturbed(lab64):
    configs = {name: trial(lab64, name) for name in CASES}
    plain = lab64.trial(**(BEST | {"load_best_model_at_end": False, "seed": 7}))
    engine = make(lab64, PackedEngine)
    events = train(engine, [*configs.values(), plain])
    for number, config in enumerate(configs.values()):
        assert_equals_trainer(engine, events, number, config, lab64.alone(config))
    alone = lab64.alone(plain)
    mine = [event for event in events if event.number == len(configs)]
    assert max(abs(one.loss - loss) for one, loss in zip(only(mine, Logged), alone.losses, strict=True)) < 1e-9
    assert largest_drift(read_adapter(engine.trial_folder(len(configs)) / "adapter"), alone.adapter) < 1e-8
    assert "best_step" not in only(mine, Finished)[0].metrics


# The rule alone, on many curves


@pytest.mark.parametrize("metric", ["eval_loss", "token_accuracy"])
def test_the_rule_is_that_of_trainer_on_any_curve(tmp_path, metric):
    """`Trainer._determine_best_metric` and `EarlyStoppingCallback`, asked in the order in which `Trainer` asks them."""
    numbers = np.random.default_rng(0)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        use_cpu=True,
        report_to="none",
    )
    for _ in range(300):
        patience, threshold = int(numbers.integers(1, 4)), float(numbers.choice([0.0, 0.1, 0.25]))
        training = TrainingSettings(
            load_best_model_at_end=True,
            metric_for_best_model=metric,
            early_stopping_patience=patience,
            early_stopping_threshold=threshold,
        )
        state, control = TrainerState(), TrainerControl()
        callback, so_far = EarlyStoppingCallback(patience, threshold), None
        for step in range(1, 12):
            value = float(numbers.integers(0, 8)) / 8  # ties, and gains as large as the threshold, are among them
            state.global_step = step
            metrics = {f"eval_{metric.removeprefix('eval_')}": value}
            callback.on_evaluate(arguments, state, control, metrics)
            Trainer._determine_best_metric(SimpleNamespace(args=arguments, state=state), metrics, None)
            scores = {} if metric == "eval_loss" else {metric: value}
            judged = judge(training, so_far, Measured(step, step, value, scores))
            so_far = judged.so_far
            assert judged.left.step == state.best_global_step
            assert judged.left.loss(metric) == (state.best_metric if metric == "eval_loss" else -state.best_metric)
            assert so_far.without_gain == callback.early_stopping_patience_counter
            assert judged.stops == control.should_training_stop
            if judged.stops:
                break


def test_an_evaluation_whose_metric_failed_is_none_of_the_best():
    training = TrainingSettings(
        load_best_model_at_end=True, metric_for_best_model="token_accuracy", early_stopping_patience=2
    )
    so_far, left = None, []
    for step, scores in enumerate(({}, {}, {"token_accuracy": 0.2}, {}, {"token_accuracy": 0.1}), start=1):
        judged = judge(training, so_far, Measured(step, step, 1.0, scores))
        so_far = judged.so_far
        left.append((judged.left.step, judged.stops))
    assert left == [(1, False), (1, False), (3, False), (3, False), (3, True)]
