"""Answers of a pack: token for token those of each adapter alone, by `PeftModel.generate`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import FAMILIES
from workshop import CPU, VOCABULARY, llama_config, make_base, make_slot, peft_model_of, write_base

from lora_lab.common.errors import InputError
from lora_lab.study.settings import ModelSettings
from lora_lab.training.base.loading import load_base
from lora_lab.training.generation import Greedy, answer_text, end_tokens, side_by_side
from lora_lab.training.packed import generation
from lora_lab.training.packed.generation import Decoder
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.reference.generation import generated
from lora_lab.training.reference.model import sharing_copy

KEEPS_NOTHING = ("RecurrentGemma", "DeepSeek-V3", "Bamba")
"""All tokens are read again at every step: the states of the one lie in its modules, where rows cannot leave; the other
projects all that it keeps anew, behind adapted modules that are then given more rows than there are tokens; the cache
of the last is off by 3% of the logits' spread (transformers 5.23), also in `generate`."""
DIFFERS = ("Bamba",)
"""`generate` goes on from that cache, and one of 25 answers is another one from its sixth token on."""
GREEDY = Greedy(max_new_tokens=9, stop=frozenset({3, 17, 40, 55}))
MIXED = [
    {"r": 4, "target_modules": "all-linear"},
    {"r": 2, "target_modules": "attention", "lora_alpha": 3},
    {"r": 8, "target_modules": "all-linear", "layers": "last_half", "use_rslora": True},
    {"r": 3, "target_modules": "attention", "layers": "first_half"},
]


def prompts(lengths=(5, 3, 9, 5, 4), seed=0):
    numbers = np.random.default_rng(seed)
    return [numbers.integers(0, VOCABULARY - 2, size=length) for length in lengths]


def mixed_slots(base, count):
    return [make_slot(base, lora=MIXED[index % len(MIXED)], seed=index) for index in range(count)]


def alone(pristine, base, slot, asked, greedy=GREEDY):
    return generated(base, peft_model_of(pristine, base, slot), asked, greedy)


def same(found, expected):
    assert [answer.tolist() for answer in found] == [answer.tolist() for answer in expected]


def base_of(family, folder):
    write_base(folder, FAMILIES[family])
    return load_base(ModelSettings(model_name_or_path=str(folder), dtype="float64"), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_answers_of_a_pack_are_those_of_generate_alone(family, tmp_path):
    if FAMILIES[family].model_type == "qwen2":
        pytest.skip("its tokenizer is another; Qwen2-MoE and Qwen3 are tried")
    base = base_of(family, tmp_path)
    pristine = sharing_copy(base.model)
    slots, asked = mixed_slots(base, 4), prompts()
    decoder = Decoder(PackedModel(base), CPU, base.compute_dtype)

    packed = decoder.answers([None, *slots], asked, GREEDY, rows_per_slot=3)

    assert decoder._goes_on is (family not in KEEPS_NOTHING)
    if family in DIFFERS:
        pytest.xfail("generate goes on from a cache that is off")
    same(packed[0], generated(base, pristine, asked, GREEDY))
    for slot, found in zip(slots, packed[1:], strict=True):
        same(found, alone(pristine, base, slot, asked))
    assert len({tuple(answer) for answers in packed for answer in answers}) > len(asked), "adapters change answers"


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(8, marks=pytest.mark.slow)])
def test_any_number_of_trials_with_the_head_adapted_too(count):
    base = make_base(llama_config())
    pristine = sharing_copy(base.model)
    slots = mixed_slots(base, count)
    slots[0] = make_slot(base, lora={"target_modules": "all-linear+head"})

    packed = Decoder(PackedModel(base), CPU, base.compute_dtype).answers(slots, prompts(), GREEDY, rows_per_slot=8)

    for slot, found in zip(slots, packed, strict=True):
        same(found, alone(pristine, base, slot, prompts()))


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_a_quantized_base_answers_as_alone(quantization, tmp_path):
    write_base(tmp_path, llama_config())
    base = load_base(ModelSettings(model_name_or_path=str(tmp_path), quantization=quantization, dtype="float32"), CPU)
    pristine = sharing_copy(base.model)
    slots = mixed_slots(base, 4)

    packed = Decoder(PackedModel(base), CPU, base.compute_dtype).answers(slots, prompts(), GREEDY, rows_per_slot=3)

    for slot, found in zip(slots, packed, strict=True):
        same(found, alone(pristine, base, slot, prompts()))


def test_rows_end_at_their_stop_token_or_their_limit_and_then_leave_the_batch(monkeypatch):
    base = make_base(llama_config())
    model, rows = PackedModel(base), []
    real = model.next_logits
    monkeypatch.setattr(
        model, "next_logits", lambda ids, *rest, **keep: rows.append(len(ids)) or real(ids, *rest, **keep)
    )
    decoder = Decoder(model, CPU, base.compute_dtype)
    decoder._goes_on = True
    [free] = decoder.answers([None], prompts(), Greedy(6, frozenset()), rows_per_slot=5)
    assert [len(answer) for answer in free] == [6] * 5
    rows.clear()

    stop = frozenset({int(free[0][2])})
    [stopped] = decoder.answers([None], prompts(), Greedy(6, stop), rows_per_slot=5)

    for answer, whole in zip(stopped, free, strict=True):
        ends = [place for place, token in enumerate(whole) if token in stop]
        assert answer.tolist() == whole[: ends[0] + 1 if ends else 6].tolist()
    assert rows[0] == 5
    assert rows[-1] < 5
    assert rows == sorted(rows, reverse=True)


@pytest.mark.slow
def test_how_many_rows_are_answered_at_once_changes_nothing():
    base = make_base(llama_config())
    slots = mixed_slots(base, 2)
    decoder = Decoder(PackedModel(base), CPU, base.compute_dtype)
    asked = prompts((2, 11, 7, 3, 20, 4))
    whole = decoder.answers(slots, asked, GREEDY, rows_per_slot=6)
    for rows in (1, 2, 5):
        for found, expected in zip(decoder.answers(slots, asked, GREEDY, rows), whole, strict=True):
            same(found, expected)


def test_a_base_whose_cache_cannot_be_trusted_reads_all_again(monkeypatch):
    base = make_base(llama_config())
    asked = prompts()
    [expected] = Decoder(PackedModel(base), CPU, base.compute_dtype).answers([None], asked, GREEDY, 3)
    monkeypatch.setattr(generation, "MOST_APART", {torch.float64: -1.0})
    decoder = Decoder(PackedModel(base), CPU, base.compute_dtype)
    [found] = decoder.answers([None], asked, GREEDY, 3)
    assert decoder._goes_on is False
    same(found, expected)


@pytest.mark.parametrize(
    ("rows", "apart", "batches"),
    [(2, 100, [[0, 2], [1, 3]]), (9, 100, [[0, 2, 1, 3]]), (9, 2, [[0, 2], [1, 3]]), (9, 0, [[0], [2], [1, 3]])],
)
def test_prompts_of_similar_length_are_answered_together(rows, apart, batches):
    assert [chosen.tolist() for chosen in side_by_side([9, 3, 7, 3], rows, apart)] == batches


def test_the_generation_config_of_the_base_does_not_shift_the_most_likely_token():
    base = make_base(llama_config())
    expected = generated(base, base.model, prompts(), GREEDY)
    base.model.generation_config.repetition_penalty = 5.0
    base.model.generation_config.do_sample = True
    base.model.generation_config.temperature = 3.0
    same(generated(base, base.model, prompts(), GREEDY, rows=4), expected)


def tokenizer(**fields):
    return SimpleNamespace(**({"eos_token_id": None} | fields))


@pytest.mark.parametrize(
    ("of_tokenizer", "of_base", "ends"), [(7, None, {7}), (None, [4, 5], {4, 5}), (7, 9, {7, 9}), (7, [7], {7})]
)
def test_the_tokens_that_end_an_answer_are_those_of_tokenizer_and_base(of_tokenizer, of_base, ends):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=of_base))
    assert end_tokens(tokenizer(eos_token_id=of_tokenizer), model) == ends


def test_a_tokenizer_without_an_end_token_is_refused_with_what_to_set():
    with pytest.raises(InputError, match=r"no eos_token; set tokenizer\.eos_token"):
        end_tokens(tokenizer(), SimpleNamespace(generation_config=None))


def test_an_answer_is_read_without_the_token_that_ended_it():
    words = tokenizer(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)) * skip_special_tokens)
    assert answer_text(words, torch.tensor([5, 6, 3]), {3}) == "5 6"
    assert answer_text(words, [5, 3, 6], {3}) == "5 3 6"
    assert answer_text(words, [], {3}) == ""
