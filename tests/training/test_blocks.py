"""Slots of one shape as one block: the numbers of the loop over slots, whatever joins, leaves, or has no memory."""

from __future__ import annotations

import pytest
import torch
from samples import sample
from workshop import drain, llama_config, make_base, make_slot, make_tokens, only

from lora_lab.common.errors import InputError
from lora_lab.study.events import Diverged, Evaluated, Logged
from lora_lab.training.packed import blocks
from lora_lab.training.packed.blocks import SETTING, Blocks, merging_pays
from lora_lab.training.packed.model import PackedModel

EXACT = 1e-9


def figures(events, first=0):
    """What is to be the same, by trial, counted from `first`, and step."""
    found = {}
    for event in events:
        if isinstance(event, Logged):
            found["step", event.number - first, event.step] = (event.loss, event.grad_norm)
        elif isinstance(event, Evaluated):
            found["evaluation", event.number - first, event.step] = (event.eval_loss,)
    return found


def assert_near(one, other, limit=EXACT):
    assert one.keys() == other.keys()
    assert one
    for key, values in one.items():
        assert values == pytest.approx(other[key], abs=limit), key


PACKS = {
    "one rank": [{}] * 3,
    "ranks, scalings": [{"lora": {"r": r, "lora_alpha": 5}} for r in (4, 8, 4)]
    + [{"lora": {"lora_alpha": 3, "use_rslora": True}}],
    "dropout": [{"lora": {"lora_dropout": p}} for p in (0.2, 0.3, 0.0)],
    "targets": [{"lora": {"target_modules": kind}} for kind in ("attention", "mlp", "attention", "mlp")],
    "layers, head": [{"lora": {"layers": "last_half"}}] * 2 + [{"lora": {"target_modules": "all-linear+head"}}] * 2,
    "accumulation": [{"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 3}, {}],
    "checkpointing": [{"gradient_checkpointing": True}] * 2,
    "batches": [{"per_device_train_batch_size": rows} for rows in (5, 3, 3, 5)],
    "8 bits": [{"optim": "adamw_8bit", "dtype": "float32"}] * 2,
    "bfloat16": [{"dtype": "bfloat16", "lora": {"lora_alpha": alpha}} for alpha in (3, 5)],
}
LIMITS = {"float64": EXACT, "float32": 1e-5, "bfloat16": 2e-2}


QUICK = ["ranks, scalings", "dropout", "layers, head", "checkpointing", "batches", "8 bits"]


@pytest.mark.parametrize("name", sample(PACKS, QUICK))
def test_blocks_compute_what_the_loop_computes(bench, monkeypatch, name):
    dtype = PACKS[name][0].get("dtype", "float64")
    defaults = {"max_steps": 4, "eval_steps": 4, "logging_steps": 1, "dtype": dtype}
    configs = [bench.trial(**(defaults | {"seed": seed} | settings)) for seed, settings in enumerate(PACKS[name])]
    engine, runs = bench.engine(dtype=dtype), {}  # one engine, which measures memory once
    for first, setting in ((0, "single"), (len(configs), "merged")):
        monkeypatch.setenv(SETTING, setting)
        for number, config in enumerate(configs):
            engine.admit(first + number, config)
        runs[setting] = figures(drain(engine), first)
    assert_near(runs["merged"], runs["single"], LIMITS[dtype])


def test_a_diverging_neighbor_leaves_the_block_bit_equal(bench, monkeypatch):
    monkeypatch.setenv(SETTING, "merged")
    calm = [bench.trial(seed=seed, max_steps=6, logging_steps=1) for seed in range(2)]
    wild = bench.trial(seed=3, max_steps=6, logging_steps=1, learning_rate=1e30)

    def with_a_third(third, *, leaves_at=None):
        engine = bench.engine()
        for number, config in enumerate([calm[0], third, calm[1]]):
            engine.admit(number, config)
        assert engine._model.blocks.arrange(engine._slots.values())
        events = []
        while engine.active:
            events += engine.step()
            if leaves_at is not None and only(events, Logged)[-1].step == leaves_at:
                engine.discard(1)
        return events

    poisoned = with_a_third(wild)
    [ended] = only(poisoned, Diverged)
    assert ended.number == 1
    control = figures(with_a_third(calm[0].model_copy(), leaves_at=ended.step - 1))
    mine = {key: values for key, values in figures(poisoned).items() if key[1] != 1}
    assert mine == {key: values for key, values in control.items() if key[1] != 1}


# Without an engine: a pack whose members come and go


@pytest.fixture
def base():
    return make_base(llama_config())


def spans_of(known: Blocks, pack, rows=4):
    ordered = known.arrange(pack)
    return ordered, [span.slots for span in known.spans(ordered, [rows] * len(ordered))]


def test_members_of_a_block_stand_side_by_side(base, monkeypatch):
    monkeypatch.setenv(SETTING, "merged")
    pack = [make_slot(base, lora={"r": r}) for r in (4, 8, 4, 2, 8, 4)]
    ordered, spans = spans_of(Blocks(), pack)
    assert [slot.config.lora.r for slot in ordered] == [4, 4, 4, 8, 8, 2]
    assert spans == [3, 2, 1]
    assert ordered[:3] == [pack[0], pack[2], pack[5]]


def test_what_a_slot_holds_moves_with_it(base, monkeypatch):
    monkeypatch.setenv(SETTING, "merged")
    pack = [make_slot(base, seed=seed) for seed in range(3)]
    for number, slot in enumerate(pack):
        slot.parameters.grad.fill_(number + 1.0)
        slot.step_optimizer()  # moments
        slot.parameters.grad.fill_(number + 2.0)
    before = [slot.state() | {"gradient": slot.parameters.grad.clone()} for slot in pack]
    Blocks().arrange(pack)
    assert len({slot.parameters.untyped_storage().data_ptr() for slot in pack}) == 1
    for slot, known in zip(pack, before, strict=True):
        now = slot.state() | {"gradient": slot.parameters.grad}
        assert now.keys() == known.keys()
        assert all(torch.equal(now[name], known[name]) for name in known)
        slot.step_optimizer()
        assert not torch.equal(slot.parameters, known["parameters"])
        assert all(torch.equal(pair.a, slot.adapters[name].a) for name, pair in slot.weights().items())


def test_who_comes_takes_the_row_of_who_left(base, monkeypatch):
    monkeypatch.setenv(SETTING, "merged")
    known, pack = Blocks(), [make_slot(base, seed=seed) for seed in range(4)]
    known.arrange(pack)
    place = pack[1].parameters.data_ptr()
    known.leave(pack[1])
    newcomer = make_slot(base, seed=9)
    ordered, spans = spans_of(known, [pack[0], pack[2], pack[3], newcomer])
    assert newcomer.parameters.data_ptr() == place
    assert ordered == [pack[0], newcomer, pack[2], pack[3]]
    assert spans == [4]


def test_no_row_is_kept_for_nobody(base, monkeypatch):
    monkeypatch.setenv(SETTING, "merged")
    known, pack = Blocks(), [make_slot(base, seed=seed) for seed in range(4)]
    known.arrange(pack)
    known.leave(pack[1])
    left = [pack[0], pack[2], pack[3]]
    assert spans_of(known, left) == (left, [3])
    stored = pack[0].parameters.untyped_storage()
    assert stored.nbytes() <= 3 * (pack[0].parameters.nbytes + 64 * 8)
    known.leave(pack[0])
    known.leave(pack[2])
    assert spans_of(known, [pack[3]]) == ([pack[3]], [1])
    assert pack[3].parameters.untyped_storage().nbytes() <= pack[3].parameters.nbytes + 64 * 8
    assert pack[3].parameters.grad.untyped_storage().nbytes() <= pack[3].parameters.nbytes + 64 * 8


def test_without_memory_for_common_buffers_slots_stay_as_they_are(base, monkeypatch):
    monkeypatch.setenv(SETTING, "merged")
    batch = [make_tokens(2, shortest=9, longest=9, seed=seed) for seed in range(3)]
    for fails_at in range(2):
        pack = [make_slot(base, data=tokens, seed=seed) for seed, tokens in enumerate(batch)]
        model, calls = PackedModel(base), []

        def zeros(*shape, calls=calls, fails_at=fails_at, **how):
            calls.append(shape)
            if len(calls) == fails_at + 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return torch.empty(*shape, **how).zero_()

        monkeypatch.setattr(blocks.torch, "zeros", zeros)
        ordered, spans = spans_of(model.blocks, pack)
        monkeypatch.undo()
        monkeypatch.setenv(SETTING, "merged")
        assert (ordered, spans) == (pack, [1, 1, 1])
        assert spans_of(model.blocks, pack)[1] == [1, 1, 1]  # and it is not tried at every step
        assert len(calls) == fails_at + 1


def test_equal_rows_only_are_merged(base, monkeypatch):
    monkeypatch.setenv(SETTING, "merged")
    known, pack = Blocks(), [make_slot(base, seed=seed) for seed in range(5)]
    ordered = known.arrange(pack)
    spans = known.spans([*ordered[:4], None, ordered[4]], [8, 8, 6, 6, 3, 6])
    assert [(span.start, span.stop, span.slots) for span in spans] == [(0, 16, 2), (16, 28, 2), (31, 37, 1)]
    assert [span.slots for span in known.spans([ordered[1], ordered[0], ordered[3]], [8] * 3)] == [1, 1, 1]


def test_the_choice_is_measured_once_and_can_be_set(base, monkeypatch):
    merging_pays.cache_clear()
    seconds = iter(([3.0] * 5 + [1.0] * 5) * 2)
    monkeypatch.setattr(blocks, "_seconds", lambda *_: next(seconds))
    pack = [make_slot(base, seed=seed) for seed in range(2)]
    assert spans_of(Blocks(), pack)[1] == spans_of(Blocks(), pack)[1] == [2]
    monkeypatch.setenv(SETTING, "single")
    assert spans_of(Blocks(), pack)[1] == [1, 1]
    monkeypatch.setenv(SETTING, "both")
    with pytest.raises(InputError, match="LORA_LAB_BLOCKS: 'both' is neither of merged, single; set one"):
        Blocks().arrange(pack)
    merging_pays.cache_clear()
