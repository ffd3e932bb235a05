"""Gradient checkpointing changes what is kept in memory, and no number."""

from __future__ import annotations

import pytest
import torch
from test_packed_model import CONFIGS
from torch import nn
from workshop import gradients, llama_config, make_base, make_batch, make_slot, make_tokens, only

from lora_lab.common.errors import InputError
from lora_lab.study.events import Finished
from lora_lab.training.packed.model import PackedModel


def trained(model, base, *, recompute: bool, dropout: float):
    """Losses and gradients of two slots after a forward and backward pass."""
    slots = [
        make_slot(base, lora={"lora_dropout": dropout}, gradient_checkpointing=recompute),
        make_slot(base, lora={"r": 3, "layers": "last_half"}, gradient_checkpointing=recompute, seed=1),
    ]
    tokens = [make_tokens(3), make_tokens(2, seed=1)]
    for slot, rows in zip(slots, tokens, strict=True):
        slot.dropout.prepare(4, 0, len(rows), max(map(len, rows.input_ids)))
    layout = model.layout(make_batch(*tokens), slots)
    assert layout.recompute == recompute
    with model.routed(layout):
        nll = model.nll(layout)
        nll.sum().backward()
    return nll.detach(), [gradients(slot) for slot in slots]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("name", CONFIGS)
def test_losses_and_gradients_are_bit_equal(name, dropout):
    base = make_base(CONFIGS[name])
    model = PackedModel(base)
    kept = trained(model, base, recompute=False, dropout=dropout)
    again = trained(model, base, recompute=True, dropout=dropout)
    assert torch.equal(kept[0], again[0])
    for left, right in zip(kept[1], again[1], strict=True):
        assert left.keys() == right.keys()
        assert all(torch.equal(a, b) for module in left for a, b in zip(left[module], right[module], strict=True))
        assert any(pair[0].any() for pair in left.values())


def test_layers_run_twice_only_where_it_is_asked_for():
    base = make_base(llama_config())
    runs = []
    for layer in base.model.model.layers:
        layer.self_attn.register_forward_hook(lambda *_: runs.append(1))
    model = PackedModel(base)
    counts = []
    for recompute in (False, True, False):
        runs.clear()
        trained(model, base, recompute=recompute, dropout=0.0)
        counts.append(len(runs))
    assert counts == [2, 4, 2]


def test_the_base_stays_in_evaluation_mode():
    base = make_base(llama_config(attention_dropout=0.5))
    model = PackedModel(base)
    first = trained(model, base, recompute=True, dropout=0.0)
    assert torch.equal(first[0], trained(model, base, recompute=False, dropout=0.0)[0])


def test_the_measured_peak_falls(bench):
    peaks = {}
    for recompute in (False, True):
        config = bench.trial(num_train_epochs=1, per_device_train_batch_size=12, gradient_checkpointing=recompute)
        [finished] = only(bench.run(config), Finished)
        peaks[recompute] = finished.metrics["peak_memory_bytes"]
    assert peaks[True] < 0.8 * peaks[False]


def test_a_base_without_layers_to_recompute_is_refused(bench, monkeypatch):
    monkeypatch.setattr("lora_lab.training.base.abilities.GradientCheckpointingLayer", nn.Transformer)
    engine = bench.engine()
    with pytest.raises(InputError, match=r"gradient_checkpointing: LlamaForCausalLM has no layers .* set it to false"):
        engine.admit(0, bench.trial(gradient_checkpointing=True))
