"""The objective: its loss, its denominator and its evaluation, by hand; and another one through both engines."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.nn import functional
from transformers import AutoModelForCausalLM
from workshop import CPU, drain, make_tokens, only, own_base

from lora_lab.analysis.paired import ExampleLosses, token_mean
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.events import Finished, Logged
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.study.trial_folder import TrialFolder
from lora_lab.training.batch import TokenLosses
from lora_lab.training.evaluation import evaluate
from lora_lab.training.objective import LanguageModeling, SequenceClassification, objective_of
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine


@pytest.mark.parametrize(
    ("task", "objective"), [("CAUSAL_LM", LanguageModeling()), ("SEQ_CLS", SequenceClassification())]
)
def test_the_objective_of_a_trial_is_that_of_its_task(task, objective):
    model, data = ModelSettings(model_name_or_path="base", task_type=task), DataSettings(train="rows")
    assert (
        objective_of(TrialConfig(model=model, data=data, training=TrainingSettings(), lora=LoraSettings())) == objective
    )


def test_the_parts_of_a_step_add_up_to_the_mean_over_its_rows_of_classes():
    objective, batches = SequenceClassification(), [np.array([4, 0]), np.array([2])]
    nll = torch.tensor([1.0, 2.0, 6.0])
    parts = [TokenLosses(nll[:2], np.ones(2, np.int64)), TokenLosses(nll[2:], np.ones(1, np.int64))]
    denominator = objective.denominator(make_tokens(5), batches)
    assert sum(float(objective.loss(part, denominator)) for part in parts) == 3.0
    assert token_mean(objective.examples(TokenLosses(nll, np.ones(3, np.int64)))) == 3.0


def test_the_parts_of_a_step_add_up_to_the_mean_over_all_its_label_tokens():
    """However the rows of the step are divided over micro-batches."""
    train, objective = make_tokens(7), LanguageModeling()
    counts = np.array([train.label_tokens(index) for index in range(7)])
    nll = [torch.rand(int(count), dtype=torch.float64) for count in counts]
    expected = float(torch.cat(nll).mean())
    for micro_batches in ([range(7)], [[0, 1, 2], [3, 4], [5, 6]], [[6], [0, 3], [1, 2, 4, 5]]):
        rows = [np.array(batch) for batch in micro_batches]
        denominator = objective.denominator(train, rows)
        assert denominator == counts.sum()
        parts = [
            objective.loss(TokenLosses(torch.cat([nll[i] for i in batch]), counts[batch]), denominator)
            for batch in rows
        ]
        assert float(sum(parts)) == pytest.approx(expected, abs=1e-14)


def test_the_gradient_of_every_label_token_is_one_by_the_denominator():
    nll = torch.rand(5, dtype=torch.float64, requires_grad=True)
    LanguageModeling().loss(TokenLosses(nll, np.array([5])), 20).backward()
    assert torch.equal(nll.grad, torch.full((5,), 1 / 20, dtype=torch.float64))


def test_an_evaluation_keeps_every_example_whatever_shares_its_batch():
    """Losses that depend on the tokens alone, so that the order in which rows are batched must not show."""
    dataset = make_tokens(9)

    def token_losses(batch):
        labels = batch.labels[:, 1:]
        learned = labels != -100
        halves = torch.arange(len(labels)) < len(labels) // 2  # of two trials, the second has twice the loss
        nll = (1.0 + labels) * torch.where(halves, 1.0, 2.0)[:, None]
        return TokenLosses(nll[learned], learned.sum(dim=1).numpy())

    learned = [row[1:][row[1:] != -100] for row in dataset.labels]
    for rows in (1, 2, 4, 9, 20):
        first, second = evaluate(token_losses, dataset, LanguageModeling(), trials=2, rows_per_trial=rows)
        assert first.nll.tolist() == [float((1 + row).sum()) for row in learned]
        assert second.nll.tolist() == [2 * loss for loss in first.nll]
        assert first.label_tokens.tolist() == second.label_tokens.tolist() == [len(row) for row in learned]
        assert token_mean(first) == pytest.approx(np.concatenate([1 + row for row in learned]).mean())


@dataclass(frozen=True)
class ExampleMeans:
    """Another objective: every example counts alike, however many label tokens it has."""

    def denominator(self, train, micro_batches):
        del train
        return sum(len(rows) for rows in micro_batches)

    def loss(self, tokens, denominator):
        return torch.stack(self._means(tokens)).sum() / denominator

    def examples(self, tokens):
        means = np.array([float(mean) for mean in self._means(tokens)])
        return ExampleLosses(means, np.ones(len(means), dtype=np.int64))

    @staticmethod
    def _means(tokens):
        return [part.mean() for part in torch.split(tokens.nll, tokens.row_counts.tolist())]


@torch.no_grad()
def example_means(model, dataset):
    means = []
    for ids, labels in zip(dataset.input_ids, dataset.labels, strict=True):
        logits = model(input_ids=torch.from_numpy(ids)[None]).logits[0, :-1]
        means.append(float(functional.cross_entropy(logits, torch.from_numpy(labels)[1:])))
    return means


def test_another_objective_is_trained_predicted_and_measured_by_both_engines(bench, tmp_path, monkeypatch):
    """Nothing but the objective says what the loss is: not an engine, an evaluation, nor the memory's prediction."""
    for place in ("packed.slot", "reference.trial", "assessment"):
        monkeypatch.setattr(f"lora_lab.training.{place}.objective_of", lambda _: ExampleMeans())
    schedule = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    config = bench.trial(**schedule, learning_rate=1e-2)
    told = []
    for engine_class in (PackedEngine, ReferenceEngine):
        base = own_base(config.model, CPU)
        engine = engine_class(base, bench.data, tmp_path / engine_class.__name__)
        plain = AutoModelForCausalLM.from_pretrained(bench.base_folder, dtype=torch.float64).eval()
        held_out, train = bench.data.splits(config.data).eval, bench.data.splits(config.data).train
        assert engine.base_losses(config)[0] == pytest.approx(np.mean(example_means(plain, held_out)), abs=1e-10)
        engine.admit(0, config)
        first_step = np.concatenate(engine.trial(0).progress.micro_batches)
        events = drain(engine)
        expected = np.mean([example_means(plain, train)[index] for index in first_step])
        assert only(events, Logged)[0].loss == pytest.approx(expected, abs=1e-10)
        trained = PeftModel.from_pretrained(plain, TrialFolder(engine.trial_folder(0)).adapter).eval()
        final = only(events, Finished)[0].metrics
        assert final["eval_loss"] == pytest.approx(np.mean(example_means(trained, held_out)), abs=1e-9)
        assert final["peak_memory_bytes"] > 0
        assert ("predicted_memory_bytes" in final) == (engine_class is PackedEngine)
        told.append([event.loss for event in only(events, Logged)])
    assert told[0] == pytest.approx(told[1], abs=1e-9)
