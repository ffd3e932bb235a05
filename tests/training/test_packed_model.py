"""Every architecture gives each slot the token losses and gradients that plain `peft` gives it alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from transformers import (
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)
from workshop import (
    VOCABULARY,
    gradients,
    llama_config,
    make_base,
    make_batch,
    make_slot,
    make_tokens,
    with_peft,
)

from lora_lab.common.errors import TrainingError
from lora_lab.data.tokens import IGNORED
from lora_lab.training.batch import PackedBatch
from lora_lab.training.packed import model as packed_model
from lora_lab.training.packed.model import PackedModel

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
PLAIN = {
    "llama": llama_config(),
    "llama, tied": llama_config(tie_word_embeddings=True),
    "gpt2": GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=64, vocab_size=VOCABULARY),
    "gpt-neox": GPTNeoXConfig(**SMALL),
    "opt": OPTConfig(
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
    ),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "phi3": Phi3Config(**GROUPED),
}
AFTER_HEAD = {
    "gemma2, capped logits": Gemma2Config(
        **GROUPED, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=2.0, attn_logit_softcapping=5.0
    ),
    "granite, divided logits": GraniteConfig(**GROUPED, logits_scaling=4.0, residual_multiplier=0.7),
    "cohere, multiplied logits": CohereConfig(**GROUPED, logit_scale=0.3),
}
CONFIGS = PLAIN | AFTER_HEAD


@pytest.fixture(autouse=True)
def float64_attention(monkeypatch):
    """transformers' eager attention takes its softmax in float32, which alone would make 1e-7 of difference."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim=dim))


def largest_difference(left, right):
    assert left.keys() == right.keys()
    return max(float((a - b).abs().max()) for name in left for a, b in zip(left[name], right[name], strict=True))


def packed(base, slots, tokens):
    """Token losses of every slot after one forward and backward pass of their sum."""
    model = PackedModel(base)
    losses = model.token_losses(make_batch(*tokens), slots)
    losses.nll.sum().backward()
    counts = [sum(dataset.label_tokens(i) for i in range(len(dataset))) for dataset in tokens]
    return torch.split(losses.nll.detach(), counts)


@pytest.mark.parametrize("name", CONFIGS)
def test_token_losses_and_gradients_are_those_of_peft(name):
    base = make_base(CONFIGS[name])
    pristine = copy.deepcopy(base.model)
    slots = [
        make_slot(base, lora={"r": 4, "target_modules": "all-linear"}),
        make_slot(base, lora={"r": 3, "target_modules": "attention", "lora_alpha": 2}, seed=1),
        make_slot(base, lora={"r": 6, "target_modules": "all-linear+head", "use_rslora": True}, seed=2),
        make_slot(base, lora={"r": 2, "target_modules": "mlp", "layers": "last_half"}, seed=3),
    ]
    tokens = [make_tokens(rows, seed=rows, longest=longest) for rows, longest in ((3, 20), (5, 9), (2, 13), (4, 17))]
    for slot, dataset, nll in zip(slots, tokens, packed(base, slots, tokens), strict=True):
        expected = with_peft(pristine, base, slot, dataset)
        assert (nll - expected.nll).abs().max() < 1e-10
        assert max(float(a.abs().max()) for a, _ in expected.gradients.values()) > 1e-3
        assert largest_difference(gradients(slot), expected.gradients) < 1e-10


@pytest.mark.parametrize("name", CONFIGS)
def test_only_models_that_change_logits_after_the_head_take_the_general_path(name):
    assert (PackedModel(make_base(CONFIGS[name]))._plain_head is None) == (name in AFTER_HEAD)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2, capped logits"])
def test_a_slot_of_none_is_the_bare_base(name):
    base = make_base(CONFIGS[name])
    tokens = make_tokens(4)
    batch = make_batch(tokens)
    logits = base.model(input_ids=batch.input_ids).logits[:, :-1]
    labels = batch.labels[:, 1:]
    expected = torch.nn.functional.cross_entropy(logits[labels != IGNORED], labels[labels != IGNORED], reduction="none")
    model = PackedModel(base)
    slot = make_slot(base)
    with torch.no_grad():
        both = model.token_losses(make_batch(tokens, tokens), [None, slot])
    bare, adapted = both.nll.chunk(2)
    assert (bare - expected).abs().max() < 1e-12
    assert (adapted - expected).abs().max() > 1e-3


def test_the_base_itself_is_left_as_it_was():
    base = make_base(PLAIN["llama"])
    before = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    ids = torch.arange(12).unsqueeze(0)
    logits = base.model(input_ids=ids).logits
    slot, tokens = make_slot(base, lora={"target_modules": "all-linear+head"}), make_tokens(4)
    packed(base, [slot], [tokens])
    after = base.model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert all(parameter.grad is None for parameter in base.model.parameters())
    assert torch.equal(base.model(input_ids=ids).logits, logits), "adapters act outside of token_losses"


@pytest.mark.parametrize("at_once", [1, 7 * VOCABULARY, 40 * VOCABULARY])
@pytest.mark.parametrize("targets", ["all-linear", "all-linear+head", ("lm_head",)], ids=str)
def test_logits_in_chunks_change_nothing(monkeypatch, at_once, targets):
    tokens = [make_tokens(3, seed=1), make_tokens(5, seed=2), make_tokens(2, seed=3)]

    def run():
        base = make_base(PLAIN["llama"])
        slots = [
            make_slot(base, lora={"r": 4, "target_modules": targets}),
            make_slot(base, lora={"r": 2, "target_modules": ("lm_head", "q_proj")}, seed=1),
            make_slot(base, lora={"r": 3, "target_modules": "mlp"}, seed=2),
        ]
        losses = packed(base, slots, tokens)
        return torch.cat(losses), [gradients(slot) for slot in slots]

    whole, whole_gradients = run()
    monkeypatch.setattr(packed_model, "LOGITS_AT_ONCE", at_once)
    chunked, chunked_gradients = run()
    assert len(whole) > 60
    assert (whole - chunked).abs().max() < 1e-12
    for left, right in zip(whole_gradients, chunked_gradients, strict=True):
        assert largest_difference(left, right) < 1e-12


def test_logits_are_really_cut_into_chunks(monkeypatch):
    base = make_base(PLAIN["llama"])
    seen = []
    base.model.lm_head.register_forward_hook(lambda _, args, y: seen.append(y.numel()))
    model = PackedModel(base)
    seen.clear()
    monkeypatch.setattr(packed_model, "LOGITS_AT_ONCE", 10 * VOCABULARY)
    tokens = make_tokens(6)
    with torch.no_grad():
        model.token_losses(make_batch(tokens), [make_slot(base)])
    assert max(seen) == 10 * VOCABULARY
    assert sum(seen) == VOCABULARY * sum(tokens.label_tokens(i) for i in range(6))


def test_dropout_at_the_head_does_not_depend_on_chunks(monkeypatch):
    tokens = [make_tokens(3, seed=1), make_tokens(4, seed=2)]

    def run():
        base = make_base(PLAIN["llama"])
        slots = [
            make_slot(base, lora={"target_modules": "all-linear+head", "lora_dropout": 0.5}),
            make_slot(base, seed=1),
        ]
        for slot, dataset in zip(slots, tokens, strict=True):
            slot.dropout.prepare(0, 0, len(dataset), max(len(row) for row in dataset.input_ids))
        return torch.cat(packed(base, slots, tokens)), gradients(slots[0])

    whole, whole_gradients = run()
    monkeypatch.setattr(packed_model, "LOGITS_AT_ONCE", 5 * VOCABULARY)
    chunked, chunked_gradients = run()
    assert (whole - chunked).abs().max() < 1e-12
    assert largest_difference(whole_gradients, chunked_gradients) < 1e-12


@pytest.mark.parametrize("name", ["llama", "gemma2, capped logits"])
def test_logits_are_computed_only_where_there_is_a_label(name):
    base = make_base(CONFIGS[name])
    seen = []
    base.model.lm_head.register_forward_hook(lambda _, args, y: seen.append(y.numel() // VOCABULARY))
    model = PackedModel(base)
    seen.clear()
    tokens = make_tokens(6)
    losses = model.token_losses(make_batch(tokens), [make_slot(base)])
    assert seen == [len(losses.nll)] == [sum(tokens.label_tokens(i) for i in range(6))]
    assert losses.row_counts.tolist() == [tokens.label_tokens(i) for i in range(6)]


def test_padding_does_not_change_a_row():
    base = make_base(PLAIN["llama"])
    model, slot, tokens = PackedModel(base), make_slot(base), make_tokens(4)
    batch = make_batch(tokens)
    longer = PackedBatch(
        torch.nn.functional.pad(batch.input_ids, (0, 13), value=5),
        torch.nn.functional.pad(batch.labels, (0, 13), value=IGNORED),
        batch.rows,
    )
    with torch.no_grad():
        short, long = (model.token_losses(b, [slot]).nll for b in (batch, longer))
    assert (short - long).abs().max() < 1e-12


def test_a_base_that_sends_rows_to_experts_is_handled_or_refused():
    """Rows of a routed module are no longer slot after slot; silently wrong losses would be the worst case."""
    config = MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2)
    config._experts_implementation = "eager"  # the fused kernel has no float64
    base = make_base(config)
    pristine = copy.deepcopy(base.model)
    slots = [make_slot(base, lora={"target_modules": "all-linear"}), make_slot(base, seed=1)]
    tokens = [make_tokens(3, seed=1), make_tokens(4, seed=2)]
    for slot, dataset, nll in zip(slots, tokens, packed(base, slots, tokens), strict=True):
        assert (nll - with_peft(pristine, base, slot, dataset).nll).abs().max() < 1e-10


def test_a_module_that_is_given_other_rows_than_the_tokens_is_refused():
    base = make_base(PLAIN["llama"])
    projection = base.model.model.layers[0].mlp.up_proj
    projection.register_forward_pre_hook(lambda _, args: (args[0].repeat(2, 1, 1),))
    projection.register_forward_hook(lambda _, args, y: y.chunk(2)[0])
    model, tokens = PackedModel(base), make_tokens(4)
    model.token_losses(make_batch(tokens), [make_slot(base, lora={"target_modules": "attention"})])
    with pytest.raises(TrainingError, match=r"up_proj \d+ rows where \d+ tokens go in.*lora.target_modules"):
        model.token_losses(make_batch(tokens), [make_slot(base, lora={"target_modules": "mlp"})])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_are_taken_in_float32_below_float64(dtype):
    base = make_base(PLAIN["llama"], dtype)
    slot, tokens = make_slot(base), make_tokens(4)
    model = PackedModel(base)
    losses = model.token_losses(make_batch(tokens), [slot])
    losses.nll.sum().backward()
    assert losses.nll.dtype == torch.float32
    assert slot.parameters.dtype == slot.parameters.grad.dtype == torch.float32
    assert all(view.grad_bt.any() for view in slot.adapters.values())


def test_a_layout_says_what_the_losses_of_every_slot_are_divided_by():
    base = make_base(llama_config())
    tokens = [make_tokens(3, seed=1), make_tokens(2, seed=2), make_tokens(4, seed=3)]
    slots = [make_slot(base, data=tokens[0]), None, make_slot(base, data=tokens[2])]
    slots[0].begin([np.arange(3), np.arange(2)])  # two micro-batches have one denominator
    labels = [[own.label_tokens(i) for i in range(len(own))] for own in tokens]
    layout = PackedModel(base).layout(make_batch(*tokens), slots)
    together = sum(labels[0]) + sum(labels[0][:2])
    assert layout.denominators == ((sum(labels[0]), together), (sum(labels[1]), 1), (sum(labels[2]), 1))
