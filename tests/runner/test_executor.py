"""A pack that does not fit into memory shrinks, and every trial's result stays what it is."""

from __future__ import annotations

import pytest
import torch

from lora_lab.runner.executor import InProcessExecutor
from lora_lab.runner.placement import pack_bytes
from lora_lab.study.events import Finished, Logged, OutOfMemory
from lora_lab.study.settings import DatasetRef, DataSettings, LoraSettings, ModelSettings, TrainingSettings, TrialConfig

MODEL = ModelSettings(model_name_or_path="builtin/tiny-llama")
DATA = DataSettings(
    train=DatasetRef(path="builtin/stdlib-code", max_examples=16),
    eval=DatasetRef(path="builtin/stdlib-code", max_examples=6),
    max_length=32,
)


def trial(r: int, **training: object) -> TrialConfig:
    settings = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "num_train_epochs": 2, **training}
    return TrialConfig(model=MODEL, data=DATA, training=TrainingSettings(**settings), lora=LoraSettings(r=r))


def run(executor: InProcessExecutor, configs: dict[int, TrialConfig]) -> tuple[dict, dict]:
    """Train everything, submitting whenever there is room; losses by trial and step, and how trials ended."""
    waiting, losses, ended = dict(configs), {number: {} for number in configs}, {}
    while waiting or executor.active:
        while waiting and executor.has_room:
            number = next(iter(waiting))
            if not executor.accepts(waiting[number]):
                break
            executor.submit(number, waiting.pop(number))
        for event in executor.poll():
            if isinstance(event, Logged):
                losses[event.number].setdefault(event.step, event.loss)
            if isinstance(event, (Finished, OutOfMemory)):
                ended[event.number] = event
    return losses, ended


def limit_memory(executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch, *, rows: int, calls: int = 0) -> None:
    """Let forward passes of more than `rows` rows fail as on a full device, after `calls` calls that do not."""
    executor.prepare(trial(4))
    model = executor._engine._model
    real, seen = model.nll, []

    def nll(layout):
        seen.append(len(layout.input_ids))
        if torch.is_grad_enabled() and len(seen) > calls and len(layout.input_ids) > rows:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return real(layout)

    monkeypatch.setattr(model, "nll", nll)


CONFIGS = {number: trial(r) for number, r in enumerate((4, 8, 16, 2, 32))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return run(InProcessExecutor(folder / "trials", folder / "data", 5), CONFIGS)


@pytest.mark.parametrize("calls", [0, 9, 17])
def test_a_full_device_shrinks_the_pack_and_changes_no_result(tmp_path, monkeypatch, undisturbed, calls):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 5)
    limit_memory(executor, monkeypatch, rows=8, calls=calls)
    losses, ended = run(executor, CONFIGS)
    expected_losses, expected = undisturbed
    for number in CONFIGS:
        assert isinstance(ended[number], Finished)
        assert losses[number].keys() == expected_losses[number].keys()
        assert losses[number] == pytest.approx(expected_losses[number], abs=1e-5)
        assert ended[number].metrics["eval_loss"] == pytest.approx(expected[number].metrics["eval_loss"], abs=1e-5)


def test_a_trial_that_does_not_fit_alone_ends_out_of_memory_and_spares_the_others(tmp_path, monkeypatch):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 3)
    limit_memory(executor, monkeypatch, rows=8)
    configs = {0: trial(4), 1: trial(4, per_device_train_batch_size=16), 2: trial(8)}
    _, ended = run(executor, configs)
    assert isinstance(ended[1], OutOfMemory)
    assert "does not fit even alone" in ended[1].reason
    assert "gradient_accumulation_steps" in ended[1].reason
    assert isinstance(ended[0], Finished)
    assert isinstance(ended[2], Finished)


def test_a_pack_keeps_its_activations_or_computes_them_again(tmp_path):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 3)
    keeping, recomputing = trial(4), trial(4, gradient_checkpointing=True)
    assert executor.accepts(recomputing)
    executor.submit(0, keeping)
    assert executor.accepts(trial(8))
    assert not executor.accepts(recomputing)
    executor.stop(0)
    assert executor.accepts(recomputing)


def test_peak_memory_grows_with_rank_and_is_the_trials_own(tmp_path):
    alone = InProcessExecutor(tmp_path / "a", tmp_path / "data", 1)
    together = InProcessExecutor(tmp_path / "b", tmp_path / "data", 3)
    configs = {number: trial(r, num_train_epochs=1) for number, r in enumerate((4, 64, 256))}
    _, solo = run(alone, configs)
    _, packed = run(together, configs)
    peaks = [solo[number].metrics["peak_memory_bytes"] for number in configs]
    assert peaks == sorted(set(peaks))
    assert peaks == [packed[number].metrics["peak_memory_bytes"] for number in configs]


def test_a_memory_limit_fills_packs_only_so_far_and_changes_no_result(tmp_path, undisturbed):
    unlimited = InProcessExecutor(tmp_path / "a", tmp_path / "data", 5)
    unlimited.prepare(CONFIGS[0])
    needs = {number: unlimited._need(config) for number, config in CONFIGS.items()}
    limit = pack_bytes([needs[0], needs[1]]) + 1000
    executor = InProcessExecutor(tmp_path / "b", tmp_path / "data", 5, str(limit))
    together, poll = [], executor.poll

    def watched():
        together.append(executor._engine.active)
        return poll()

    executor.poll = watched
    _, ended = run(executor, CONFIGS)
    assert max(map(len, together)) == 2
    assert all(pack_bytes([needs[number] for number in active]) <= limit for active in together)
    _, expected = undisturbed
    for number in CONFIGS:
        assert ended[number].metrics["eval_loss"] == pytest.approx(expected[number].metrics["eval_loss"], abs=1e-5)


def test_a_trial_above_the_limit_ends_at_once_and_its_neighbor_goes_on(tmp_path):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 5)
    executor.prepare(CONFIGS[0])
    small, large = trial(4), trial(256)
    limit = pack_bytes([executor._need(small)]) * 11 // 10
    limited = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 5, str(limit))
    _, ended = run(limited, {0: large, 1: small})
    assert isinstance(ended[0], OutOfMemory)
    assert f"{limit:,} bytes" in ended[0].reason
    assert "by prediction" in ended[0].reason
    assert isinstance(ended[1], Finished)


def test_after_memory_ran_out_packs_take_no_more_than_what_fitted(tmp_path, monkeypatch):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 5)
    limit_memory(executor, monkeypatch, rows=8)
    assert executor._room.pack_limit_bytes is None
    run(executor, CONFIGS)
    needs = sorted(pack_bytes([executor._need(config)]) for config in CONFIGS.values())
    assert needs[0] < executor._room.pack_limit_bytes < sum(needs)
