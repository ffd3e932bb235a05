"""Several examples in one row give the losses and gradients that they give in rows of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_packed_model import AFTER_HEAD, CONFIGS
from transformers import BloomConfig, MambaConfig, MistralConfig
from workshop import VOCABULARY, gradients, make_base, make_batch, make_slot, make_tokens, only

from lora_lab.common.errors import InputError
from lora_lab.data.blocks import pack_examples
from lora_lab.data.tokens import IGNORED
from lora_lab.study.events import Evaluated, Logged
from lora_lab.training.base.abilities import require_separate_examples
from lora_lab.training.batch import PackedBatch, pad_positions, pad_rows
from lora_lab.training.packed.model import PackedModel

ROW = 24
SLIDING = {
    "mistral, sliding": MistralConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=VOCABULARY, max_position_embeddings=64, sliding_window=4,
    ),
}  # fmt: skip
SEPARATING = {name: config for name, config in CONFIGS.items() if name != "opt"} | SLIDING


@pytest.fixture(autouse=True)
def float64_attention(monkeypatch):
    """transformers' eager attention takes its softmax in float32, which alone would make 1e-7 of difference."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim=dim))


def batch_of(*per_slot):
    """All rows of every slot; those of several examples with their positions."""
    ids = [row for tokens in per_slot for row in tokens.input_ids]
    labels = [row for tokens in per_slot for row in tokens.labels]
    positions = [row for tokens in per_slot for row in tokens.positions or [None] * len(tokens)]
    length = max(map(len, ids)) + 3
    return PackedBatch(
        pad_rows(ids, length, 0),
        pad_rows(labels, length, IGNORED),
        tuple(map(len, per_slot)),
        pad_positions(positions, length),
    )


def trained(model, batch, slots):
    layout = model.layout(batch, slots)
    with model.routed(layout):
        nll = model.nll(layout)
        nll.sum().backward()
    return nll.detach()


def by_example(nll, tokens):
    """The losses of every example, by its tokens."""
    losses, parts = {}, iter(nll)
    for index, ids in enumerate(tokens.input_ids):
        positions = np.arange(len(ids)) if tokens.positions is None else tokens.positions[index]
        starts = np.flatnonzero(positions == 0)
        for part, labels in zip(np.split(ids, starts[1:]), np.split(tokens.labels[index], starts[1:]), strict=True):
            losses[tuple(part)] = [float(next(parts)) for label in labels[1:] if label != IGNORED]
    assert not list(parts)
    return losses


@pytest.mark.parametrize("name", SEPARATING)
def test_packed_rows_give_the_losses_and_gradients_of_the_examples_alone(name):
    base = make_base(SEPARATING[name])
    if name in AFTER_HEAD:
        base.model.config._attn_implementation = "eager"
    model = PackedModel(base)
    examples, others = make_tokens(9, longest=11), make_tokens(4, seed=1)
    rows = pack_examples(examples, ROW)
    assert len(rows) < len(examples)
    in_rows, apart, plain = (make_slot(base, lora={"target_modules": "all-linear+head"}, seed=s) for s in (0, 0, 1))
    model.require_separate_examples()
    nll = trained(model, batch_of(rows, others), [in_rows, plain])
    count = sum(rows.label_tokens(i) for i in range(len(rows)))
    expected = trained(model, make_batch(examples), [apart])
    left, right = by_example(nll[:count], rows), by_example(expected, examples)
    assert left.keys() == right.keys()
    assert max(abs(a - b) for key in left for a, b in zip(left[key], right[key], strict=True)) < 1e-9
    wanted = gradients(apart)
    for module, pair in gradients(in_rows).items():
        assert max(float((a - b).abs().max()) for a, b in zip(pair, wanted[module], strict=True)) < 1e-9
    # The neighbor, whose rows hold one example each, does not notice.
    alone = make_slot(base, lora={"target_modules": "all-linear+head"}, seed=1)
    assert (nll[count:] - trained(model, make_batch(others), [alone])).abs().max() < 1e-9


def test_without_positions_examples_would_see_each_other():
    base = make_base(CONFIGS["llama"])
    rows, examples = pack_examples(make_tokens(9, longest=11), ROW), make_tokens(9, longest=11)
    model, slot = PackedModel(base), make_slot(base)
    mixed = by_example(trained(model, make_batch(rows), [slot]), rows)
    alone = by_example(trained(model, make_batch(examples), [slot]), examples)
    assert max(abs(a - b) for key in alone for a, b in zip(mixed[key], alone[key], strict=True)) > 1e-3


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCABULARY),
        CONFIGS["opt"],
        MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, vocab_size=VOCABULARY),
    ],
    ids=lambda config: config.model_type,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_base_that_cannot_keep_examples_apart_is_refused(config, dtype):
    base = make_base(config, dtype)
    with pytest.raises(InputError, match=r"data.packing: \w+ForCausalLM lets .* set data.packing to false") as raised:
        PackedModel(base).require_separate_examples()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_base_whose_kernels_round_two_rows_apart_keeps_examples_apart(dtype):
    """As on a GPU, where the sums of another tile of rows may have another order."""
    base = make_base(CONFIGS["llama"], dtype)

    def rounded(_module, _args, logits):
        return torch.cat([logits[:1] * (1 + torch.finfo(dtype).eps), logits[1:]])

    base.model.get_output_embeddings().register_forward_hook(rounded)
    require_separate_examples(base.model, base.device)


def test_a_trial_with_packing_trains_the_same_tokens_in_fewer_steps(bench):
    plain = bench.trial(num_train_epochs=1)
    packed = bench.trial(num_train_epochs=1, data={"packing": True, "max_length": 64})
    events = bench.run(plain, packed)
    losses = [[event.loss for event in only(events, Logged) if event.number == number] for number in (0, 1)]
    assert len(losses[1]) < len(losses[0]) == 6
    assert len(only(events, Evaluated)) == 2
    alone = bench.run(packed)
    assert [event.loss for event in only(alone, Logged)] == pytest.approx(losses[1], abs=1e-12)
    catalog = bench.data
    sets = [catalog.splits(config.data) for config in (plain, packed)]
    assert sum(map(len, sets[0].train.input_ids)) == sum(map(len, sets[1].train.input_ids))
    assert len(sets[0].eval) == len(sets[1].eval) == 10
    assert sets[1].eval.positions is None
    assert any(note.startswith("data.packing: 24 training examples in") for note in sets[1].notes)


def test_positions_count_on_through_the_padding():
    rows = [np.array([0, 1, 2, 0, 1]), None, np.array([0, 0])]
    assert pad_positions(rows, 7).tolist() == [[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 3, 4, 5]]
