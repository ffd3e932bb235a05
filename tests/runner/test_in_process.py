"""A pack that does not fit into memory shrinks, and every trial's result stays what it is."""

from __future__ import annotations

import pytest
import torch
from samples import sample
from workshop import write_base, write_texts

from lora_lab.common.errors import InputError
from lora_lab.runner.executor import Work
from lora_lab.runner.in_process import InProcessExecutor
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.events import Failed, Finished, Logged, OutOfMemory, Started
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.loading import load_base
from lora_lab.training.memory.room import MemoryLimit, pack_bytes
from lora_lab.training.packed_engine import PackedEngine

MODEL = ModelSettings(model_name_or_path="base")
DATA = DataSettings(train="train.jsonl", eval="eval.jsonl", max_length=32)


@pytest.fixture(scope="module", autouse=True)
def _in_a_folder_with_base_and_data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_base(folder / "base")
    write_texts(folder / "train.jsonl", 16)
    write_texts(folder / "eval.jsonl", 6, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield


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
            executor.start(Work(number, waiting.pop(number)))
        for event in executor.wait(1.0):
            if isinstance(event, Logged):
                losses.setdefault(event.number, {}).setdefault(event.step, event.loss)
            if isinstance(event, (Finished, OutOfMemory)):
                ended[event.number] = event
    return losses, ended


def limit_memory(executor: InProcessExecutor, monkeypatch: pytest.MonkeyPatch, *, rows: int, calls: int = 0) -> None:
    """Let forward passes of more than `rows` rows fail as on a full device, after `calls` calls that do not."""
    executor.prepare(trial(4))
    model = executor._bench.packed._model
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


@pytest.mark.parametrize("calls", sample([0, 9, 17], [9]))
def test_a_full_device_shrinks_the_pack_and_changes_no_result(tmp_path, monkeypatch, undisturbed, calls):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 5)
    limit_memory(executor, monkeypatch, rows=8, calls=calls)
    losses, ended = run(executor, CONFIGS)
    expected_losses, expected = undisturbed
    for number in CONFIGS:
        assert isinstance(ended[number], Finished)
        assert losses[number].keys() == expected_losses[number].keys()
        assert losses[number] == pytest.approx(expected_losses[number], abs=1e-9)
        assert ended[number].metrics["eval_loss"] == pytest.approx(expected[number].metrics["eval_loss"], abs=1e-9)


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


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("tried to allocate 2 GiB")


def test_a_trial_that_is_too_large_for_its_own_slot_ends_at_its_start(tmp_path, monkeypatch):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 1)
    with monkeypatch.context() as patched:
        patched.setattr(PackedEngine, "_new_slot", out_of_memory)
        executor.start(Work(0, trial(4)))
    events = executor.wait(0.0)
    assert [type(event) for event in events] == [Started, OutOfMemory]
    assert "tried to allocate 2 GiB); lower per_device_train_batch_size" in events[1].reason
    assert executor.active == ()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("lora_lab.runner.in_process.load_base", r"model_name_or_path: .* does not fit into memory \(.*quantize it"),
        ("lora_lab.training.assessment.evaluate", r"evaluation of the bare base .*lower .*per_device_eval_batch_size"),
    ],
)
def test_a_base_that_there_is_no_room_for_is_told_in_one_line(tmp_path, monkeypatch, place, said):
    monkeypatch.setattr(place, out_of_memory)
    with pytest.raises(InputError, match=said) as raised:
        InProcessExecutor(tmp_path / "trials", tmp_path / "data", 1).base_losses(trial(4))
    assert "\n" not in str(raised.value)


def test_a_pack_keeps_its_activations_or_computes_them_again(tmp_path):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 3)
    keeping, recomputing = trial(4), trial(4, gradient_checkpointing=True)
    assert executor.accepts(recomputing)
    executor.start(Work(0, keeping))
    assert executor.accepts(trial(8))
    assert not executor.accepts(recomputing)
    executor.stop(0)
    assert executor.accepts(recomputing)


@pytest.mark.slow
def test_peak_memory_grows_with_rank_and_is_the_trials_own(tmp_path):
    alone = InProcessExecutor(tmp_path / "a", tmp_path / "data", 1)
    together = InProcessExecutor(tmp_path / "b", tmp_path / "data", 3)
    configs = {number: trial(r, num_train_epochs=1) for number, r in enumerate((4, 64, 256))}
    _, solo = run(alone, configs)
    _, packed = run(together, configs)
    peaks = [solo[number].metrics["peak_memory_bytes"] for number in configs]
    assert peaks == sorted(set(peaks))
    assert peaks == [packed[number].metrics["peak_memory_bytes"] for number in configs]


@pytest.mark.slow
def test_a_memory_limit_fills_packs_only_so_far_and_changes_no_result(tmp_path, undisturbed):
    unlimited = InProcessExecutor(tmp_path / "a", tmp_path / "data", 5)
    unlimited.prepare(CONFIGS[0])
    needs = {number: unlimited._memory.need(config, unlimited._bench.packed) for number, config in CONFIGS.items()}
    limit = pack_bytes([needs[0], needs[1]]) + 1000
    executor = InProcessExecutor(tmp_path / "b", tmp_path / "data", 5, MemoryLimit(limit))
    together, wait = [], executor.wait

    def watched(timeout_s):
        together.append(executor._bench.packed.active)
        return wait(timeout_s)

    executor.wait = watched
    _, ended = run(executor, CONFIGS)
    assert max(map(len, together)) == 2
    assert all(pack_bytes([needs[number] for number in active]) <= limit for active in together)
    _, expected = undisturbed
    for number in CONFIGS:
        assert ended[number].metrics["eval_loss"] == pytest.approx(expected[number].metrics["eval_loss"], abs=1e-9)


def test_a_trial_above_the_limit_ends_at_once_and_its_neighbor_goes_on(tmp_path):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 5)
    executor.prepare(CONFIGS[0])
    small, large = trial(4), trial(256)
    limit = pack_bytes([executor._memory.need(small, executor._bench.packed)]) * 11 // 10
    limited = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 5, MemoryLimit(limit))
    _, ended = run(limited, {0: large, 1: small})
    assert isinstance(ended[0], OutOfMemory)
    assert f"{limit:,} bytes" in ended[0].reason
    assert "by prediction" in ended[0].reason
    assert isinstance(ended[1], Finished)


@pytest.mark.slow
def test_after_memory_ran_out_packs_take_no_more_than_what_fitted(tmp_path, monkeypatch):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 5)
    limit_memory(executor, monkeypatch, rows=8)
    assert executor._memory.room.pack_limit_bytes is None
    run(executor, CONFIGS)
    needs = sorted(pack_bytes([executor._memory.need(config, executor._bench.packed)]) for config in CONFIGS.values())
    assert needs[0] < executor._memory.room.pack_limit_bytes < sum(needs)


# Two engines


def dora(r: int = 4, **training: object) -> TrialConfig:
    config = trial(r, **training)
    return config.model_copy(update={"lora": LoraSettings(r=r, use_dora=True)})


def test_a_trial_of_the_reference_engine_trains_alone_between_packs(tmp_path):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 4)
    executor.start(Work(0, trial(4)))
    assert executor.accepts(trial(8))
    assert not executor.accepts(dora())
    together = []
    executor.start(Work(1, trial(8)))
    while executor.active:
        together.append(executor.active)
        executor.wait(1.0)
    assert executor.accepts(dora())
    executor.start(Work(2, dora()))
    assert executor.active == (2,)
    assert not executor.has_room
    assert not executor.accepts(trial(8))
    assert not executor.accepts(dora(8))
    while executor.active:
        assert executor.active == (2,)
        executor.wait(1.0)
    assert together[0] == (0, 1)
    assert executor.accepts(trial(8))


@pytest.mark.slow
def test_what_trained_between_packs_changes_no_result(tmp_path, undisturbed):
    configs = {0: CONFIGS[0], 10: dora(), 1: CONFIGS[1], 11: dora(8), 2: CONFIGS[2]}
    losses, ended = run(InProcessExecutor(tmp_path / "trials", tmp_path / "data", 1), configs)
    assert all(isinstance(event, Finished) for event in ended.values())
    for number in (0, 1, 2):
        assert losses[number] == pytest.approx(undisturbed[0][number], abs=1e-9)
    assert losses[10].keys() == losses[0].keys()
    assert ended[10].metrics["trainable_params"] > ended[0].metrics["trainable_params"]


@pytest.mark.slow
def test_a_trial_of_the_reference_engine_is_stopped_and_taken_up(tmp_path):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 1)
    whole, ended = run(executor, {0: dora()})
    executor.start(Work(1, dora()))
    executor.wait(0.0)
    for _ in range(3):
        executor.wait(1.0)
    executor.close(save=True)
    assert executor.active == ()
    rest, again = run(InProcessExecutor(tmp_path / "trials", tmp_path / "data", 1), {1: dora()})
    assert rest[1] == {step: loss for step, loss in whole[0].items() if step > 3}
    assert again[1].metrics["eval_loss"] == ended[0].metrics["eval_loss"]


def test_the_memory_limit_holds_on_the_reference_engine_too(tmp_path):
    _, free = run(InProcessExecutor(tmp_path / "a", tmp_path / "data", 1), {0: dora()})
    limit = MemoryLimit(int(free[0].metrics["peak_memory_bytes"]) - 1)
    _, ended = run(InProcessExecutor(tmp_path / "b", tmp_path / "data", 1, limit), {0: dora()})
    assert isinstance(ended[0], OutOfMemory)
    assert "does not fit even alone" in ended[0].reason


@pytest.fixture
def unpackable_base(monkeypatch):
    """The base in another guise: its first up_proj is given every row twice."""

    def load(model, device):
        base = load_base(model, device)
        linear = base.model.model.layers[0].mlp.up_proj
        linear.register_forward_pre_hook(lambda _, args: (torch.cat([args[0], args[0]]),))
        linear.register_forward_hook(lambda _, __, y: y[: len(y) // 2])
        return base

    monkeypatch.setattr("lora_lab.runner.in_process.load_base", load)


def test_a_base_that_cannot_be_packed_is_trained_on_by_the_reference_engine(tmp_path, unpackable_base):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 2)
    attention = trial(4).model_copy(update={"lora": LoraSettings(r=4, target_modules="attention")})
    executor.start(Work(0, attention))
    executor.start(Work(1, trial(4)))
    assert executor.active == (0, 1)
    assert not executor.has_room
    packed, reference = executor.wait(0.0)
    assert (packed.number, packed.engine) == (0, "packed")
    assert (reference.number, reference.engine) == (1, "reference")
    assert "up_proj" in reference.reason
    _, ended = run(executor, {2: trial(8)})
    assert {type(event) for event in ended.values()} == {Finished}
    assert sorted(ended) == [0, 1, 2]


def test_a_trial_that_waits_for_the_end_of_the_pack_can_be_stopped(tmp_path, unpackable_base):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 2)
    executor.start(Work(0, trial(4).model_copy(update={"lora": LoraSettings(r=4, target_modules="attention")})))
    executor.start(Work(1, trial(4)))
    executor.stop(1)
    assert executor.active == (0,)
    assert executor.has_room


def test_what_is_wrong_with_a_trial_that_waited_is_told_as_its_failure(tmp_path, unpackable_base):
    executor = InProcessExecutor(tmp_path / "trials", tmp_path / "data", 2)
    executor.start(Work(0, trial(4).model_copy(update={"lora": LoraSettings(r=4, target_modules="attention")})))
    executor.start(Work(1, trial(4)))
    (tmp_path / "trials/0001/checkpoint").mkdir(parents=True)
    (tmp_path / "trials/0001/checkpoint/manifest.json").write_text("{}")
    executor.wait(0.0)
    executor.stop(0)
    [failed] = executor.wait(1.0)
    assert isinstance(failed, Failed)
    assert "manifest" in failed.reason
    assert executor.active == ()
