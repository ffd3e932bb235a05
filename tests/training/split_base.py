"""Run by test_device_map in a process of its own: one training step on a base that is split over two devices.

There is no second device on a machine without GPUs, so one is made up, under which nothing is computed: tensors have
shapes and devices only, and an operation on tensors of both devices is refused as on real ones.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from accelerate import dispatch_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from transformers import AutoModelForCausalLM
from workshop import llama_config, make_tokens

from lora_lab.data.tokens import IGNORED
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.adapters import initial_weights
from lora_lab.training.base.architecture import linear_map
from lora_lab.training.base.loading import Base, modules_elsewhere
from lora_lab.training.batch import PackedBatch, pad_positions, pad_rows
from lora_lab.training.datasets import TokenizedSplits
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.packed.slot import Slot

if TYPE_CHECKING:
    from lora_lab.study.targets import LinearMap

DEVICE_MAP = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "away:0",
    "model.layers.2": "away:0",
    "model.norm": "away:0",
    "lm_head": "cpu",
}


def split_base(linears: LinearMap) -> Base:
    model = AutoModelForCausalLM.from_config(llama_config(num_hidden_layers=3)).eval()
    model.requires_grad_(requires_grad=False)
    for (
        module_name,
        device,
    ) in DEVICE_MAP.items():  # accelerate cannot move such tensors
        for module in model.get_submodule(module_name).modules():
            for name, weight in module.named_parameters(recurse=False):
                module._parameters[name] = torch.nn.Parameter(weight.to(device), requires_grad=False)
    model = dispatch_model(model, DEVICE_MAP, main_device="cpu", skip_keys=model._skip_keys_device_placement)
    cpu = torch.device("cpu")
    return Base(
        model=model,
        tokenizer=None,
        linears=linears,
        device=cpu,
        dtype=torch.float32,
        adapter_dtype=torch.float32,
        compute_dtype=torch.float32,
        location="memory",
        fan_in_fan_out=False,
        module_devices=modules_elsewhere(model, cpu),
    )


def slot(base: Base, weights, tokens, targets, **training) -> Slot:
    config = TrialConfig(
        model=ModelSettings(model_name_or_path="memory"),
        data=DataSettings(train="memory"),
        training=TrainingSettings(**training),
        lora=LoraSettings(r=4, target_modules=targets),
    )
    return Slot(
        0,
        config,
        weights=weights,
        data=TokenizedSplits(tokens, tokens, None, {}, ()),
        device=base.device,
        compute_dtype=base.compute_dtype,
        module_devices=base.module_devices,
    )


class Away(_DummyBackendModule):
    """The made-up device; checkpoints ask every device for this."""

    def get_amp_supported_dtype(self):
        return [torch.bfloat16]


def main(optim: str, targets: str, *, recompute: bool) -> None:
    _setup_privateuseone_for_python_backend("away", backend_module=Away())
    tokens = make_tokens(3)
    linears = linear_map(AutoModelForCausalLM.from_config(llama_config(num_hidden_layers=3)))
    weights = initial_weights(LoraSettings(r=4, target_modules=targets), linears, 0, torch.float32)
    ids, labels = pad_rows(tokens.input_ids, 24, 0), pad_rows(tokens.labels, 24, IGNORED)
    batch = PackedBatch(ids, labels, (3,), pad_positions([None] * 3, 24))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        base = split_base(linears)
        assert {str(device) for device in base.module_devices.values()} == {"away:0"}
        assert len(base.module_devices) == 14
        own = slot(base, weights, tokens, targets, optim=optim, gradient_checkpointing=recompute)
        model = PackedModel(base)
    layout = model.layout(batch, [own])  # where labels are is not known of tensors without data
    tensors = ("input_ids", "position_ids", "positions", "targets")
    layout = replace(layout, **{name: mode.from_tensor(getattr(layout, name)) for name in tensors})
    with mode:
        with model.routed(layout):
            losses = model.nll(layout)
            losses.sum().backward()
        for name, view in own.adapters.items():
            place = base.module_devices.get(name, base.device)
            assert {t.device for t in (view.a, view.bt, view.grad_a, view.grad_bt)} == {place}, name
        assert losses.device == own.clip().device == base.device
        own.step_optimizer()
        assert {tensor.device for tensor in own.state().values()} == {base.device}
        assert isinstance(losses, type(mode.from_tensor(torch.ones(1))))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], recompute=sys.argv[3] == "recompute")
    print("trained on two devices")
