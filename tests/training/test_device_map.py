"""A base that is split over devices: hooks, adapters, gradients and optimizers go where the modules are."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from workshop import CPU, drain, gradients, llama_config, make_base, make_batch, make_slot, make_tokens, only

from lora_lab.common.errors import InputError
from lora_lab.study.events import Finished, Logged
from lora_lab.study.settings import ModelSettings
from lora_lab.training.base import loading as base_module
from lora_lab.training.base.loading import load_base, modules_elsewhere
from lora_lab.training.packed.model import PackedModel

ELSEWHERE = torch.device("cpu:0")
"""To torch another device than "cpu", so that copies are kept there as on a second GPU."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    [
        pytest.param(("adamw_torch", "all-linear", "keep"), id="adamw"),
        pytest.param(("sgd", "all-linear+head", "recompute"), id="sgd-head-recompute"),
    ],
)
def test_a_step_runs_where_no_operation_may_mix_two_devices(step):
    script = Path(__file__).with_name("split_base.py")
    done = subprocess.run(
        [sys.executable, str(script), *step],
        capture_output=True,
        text=True,
        cwd=script.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.stdout.endswith("trained on two devices\n"), done.stderr[-2000:]


def test_a_base_with_accelerates_hooks_gives_the_same_numbers():
    results = []
    for dispatched in (False, True):
        base = make_base(llama_config())
        if dispatched:
            names = (
                "model.embed_tokens",
                "model.layers.0",
                "model.layers.1",
                "model.norm",
                "model.rotary_emb",
                "lm_head",
            )
            dispatch_model(base.model, dict.fromkeys(names, "cpu"), force_hooks=True)
            assert all(hasattr(layer, "_hf_hook") for layer in base.model.model.layers)
        for recompute in (False, True):
            slot = make_slot(base, lora={"target_modules": "all-linear+head"}, gradient_checkpointing=recompute)
            model = PackedModel(base)
            layout = model.layout(make_batch(make_tokens(4)), [slot])
            with model.routed(layout):
                nll = model.nll(layout)
                nll.sum().backward()
            results.append((nll.detach(), gradients(slot)))
    (losses, expected), *others = results
    for nll, found in others:
        assert (nll - losses).abs().max() < 1e-12
        for name, pair in expected.items():
            assert max(float((a - b).abs().max()) for a, b in zip(pair, found[name], strict=True)) < 1e-12


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit"])
def test_adapters_that_are_kept_elsewhere_train_to_the_same_bits(bench, optim):
    config = bench.trial(
        dtype="float32",
        optim=optim,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
    )
    runs = []
    for place in (CPU, ELSEWHERE):
        engine = bench.engine(dtype="float32")
        names = [name for name in engine._base.linears.shapes if ".layers.1." in name]
        engine._base = replace(engine._base, module_devices=dict.fromkeys(names, place))
        engine.admit(0, config)
        slot = engine.trial(0)
        assert len(slot._away_values) == (2 * len(names) if place == ELSEWHERE else 0)
        events = drain(engine)
        losses = [event.loss for event in only(events, Logged)]
        runs.append((losses, slot.weights(), only(events, Finished)[0].metrics["eval_loss"]))
    (losses, weights, eval_loss), (other_losses, other_weights, other_eval_loss) = runs
    assert losses == other_losses
    assert eval_loss == other_eval_loss
    assert all(torch.equal(a, b) for name in weights for a, b in zip(weights[name], other_weights[name], strict=True))


def test_a_step_that_is_given_up_leaves_no_gradient_elsewhere():
    base = make_base(llama_config())
    base = replace(base, module_devices=dict.fromkeys(base.linears.shapes, ELSEWHERE))
    slot = make_slot(base)
    for _, copy in slot._away_gradients:
        copy.fill_(1.0)
    slot.abandon_step()
    assert not any(view.grad_a.any() or view.grad_bt.any() for view in slot.adapters.values())


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_auto_on_one_device_is_the_base_as_it_is(tiny_base, quantization):
    settings = {"model_name_or_path": str(tiny_base), "quantization": quantization, "dtype": "float32"}
    plain = load_base(ModelSettings(**settings), CPU)
    auto = load_base(ModelSettings(**settings, device_map="auto"), CPU)
    assert auto.device == CPU
    assert auto.module_devices == modules_elsewhere(auto.model, CPU) == {}
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(auto.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)


def test_a_base_that_fits_on_no_device_is_refused(tiny_base, monkeypatch):
    load = base_module.AutoModelForCausalLM.from_pretrained

    def offloaded(*args, **keywords):
        """As accelerate leaves a model for which there is no room: one layer is fetched from disk when it runs."""
        assert keywords.pop("device_map") == "auto"
        model, report = load(*args, **keywords)
        model.model.layers[1].to("meta")
        return model, report

    monkeypatch.setattr(base_module.AutoModelForCausalLM, "from_pretrained", offloaded)
    settings = ModelSettings(model_name_or_path=str(tiny_base), device_map="auto")
    with pytest.raises(InputError, match=r"model.device_map: 9 modules of .* fit on no visible device.*nf4") as raised:
        load_base(settings, CPU)
    assert "\n" not in str(raised.value)
