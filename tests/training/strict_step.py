"""Run by test_launches in a process of its own: what a training step launches, on a device that is made up.

Tensors have shapes, dtypes and devices only, and the device has the dtypes of a GPU. Beside counting, the step is held
to what a GPU asks for: one device and one dtype in a product, and no look at a value.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from dataclasses import replace

import torch
from split_base import Away
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import AutoModelForCausalLM, masking_utils
from workshop import llama_config, make_tokens

from lora_lab.data.tokens import IGNORED
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.adapters import initial_weights
from lora_lab.training.base.architecture import linear_map
from lora_lab.training.base.loading import Base
from lora_lab.training.batch import PackedBatch, pad_rows
from lora_lab.training.datasets import TokenizedSplits
from lora_lab.training.packed.blocks import SETTING
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.packed.slot import Slot
from lora_lab.training.packed.step import add_gradients

VIEWS = {
    "view", "t", "transpose", "permute", "slice", "select", "split", "split_with_sizes", "unsqueeze", "squeeze",
    "expand", "detach", "alias", "as_strided", "_unsafe_view", "unbind", "_reshape_alias", "lift_fresh", "empty",
    "empty_like", "new_empty", "empty_strided", "new_empty_strided", "is_same_size", "unfold", "set_", "device",
}  # fmt: skip
"""Operations that compute nothing."""
PRODUCTS = {"mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_", "linear"}
SYNCHRONIZING = {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal"}


class Strict(TorchDispatchMode):
    """Counts launches, and refuses what a GPU refuses or has to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = Counter()

    def __torch_dispatch__(self, operation, _, arguments=(), keywords=None):
        name = operation.__name__.split(".")[0]
        tensors = [value for value in tree_iter((arguments, keywords)) if isinstance(value, Tensor)]
        if name in SYNCHRONIZING:
            raise RuntimeError(f"{operation} waits for the device")
        if name in PRODUCTS and len({tensor.dtype for tensor in tensors}) > 1:
            raise RuntimeError(f"{operation} of several dtypes: {[tensor.dtype for tensor in tensors]}")
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        if len(devices) > 1:
            raise RuntimeError(f"{operation} of several devices: {devices}")
        result = operation(*arguments, **(keywords or {}))
        if name not in VIEWS:
            self.launches[name] += 1
        if isinstance(result, Tensor) and devices and {result.device.type} != devices:
            raise RuntimeError(f"{operation} copies from {devices} to {result.device}")
        return result


class Steps:
    """Steps of packs on a base of so many layers."""

    def __init__(self, layers: int) -> None:
        self._device, self._mode = torch.device("away:0"), FakeTensorMode(allow_non_fake_inputs=True)
        real = AutoModelForCausalLM.from_config(llama_config(num_hidden_layers=layers))
        self._linears = linear_map(real)
        with self._mode:
            model = AutoModelForCausalLM.from_config(
                llama_config(num_hidden_layers=layers), dtype=torch.bfloat16
            ).eval()
            for module in model.modules():
                for name, weight in module.named_parameters(recurse=False):
                    module._parameters[name] = torch.nn.Parameter(weight.to(self._device), requires_grad=False)
                for name, buffer in module.named_buffers(recurse=False):
                    module._buffers[name] = buffer.to(self._device)
            self._base = Base(
                model=model,
                tokenizer=None,
                linears=self._linears,
                device=self._device,
                dtype=torch.bfloat16,
                adapter_dtype=torch.bfloat16,
                compute_dtype=torch.bfloat16,
                location="memory",
                fan_in_fan_out=False,
            )
            self._model = PackedModel(self._base)

    def _slot(self, number: int, r: int, alpha: int) -> Slot:
        tokens = make_tokens(2, shortest=16, longest=16, seed=number)
        lora = LoraSettings(r=r, lora_alpha=alpha)
        config = TrialConfig(
            model=ModelSettings(model_name_or_path="memory"),
            data=DataSettings(train="memory"),
            training=TrainingSettings(seed=number, per_device_train_batch_size=2),
            lora=lora,
        )
        weights = initial_weights(lora, self._linears, number, torch.float32)
        with self._mode:
            slot = Slot(
                number,
                config,
                weights=weights,
                data=TokenizedSplits(tokens, tokens, None, {}, ()),
                device=self._device,
                compute_dtype=torch.bfloat16,
            )
        slot.begin([torch.arange(2).numpy()])
        return slot

    def _fake(self, tensor: Tensor) -> Tensor:
        return self._mode.from_tensor(tensor).to(self._device)

    def launches(self, pack: list[tuple[int, int]]) -> int:
        """Of the forward and backward pass of trials with these ranks and alphas."""
        slots = [self._slot(number, *settings) for number, settings in enumerate(pack)]
        with self._mode:
            slots = list(self._model.blocks.arrange(slots))
            self._model.blocks.spans(slots, [2] * len(slots))  # makes the views, on the device
        ids = [row for slot in slots for row in slot.data.train.input_ids]
        labels = [row for slot in slots for row in slot.data.train.labels]
        batch = PackedBatch(pad_rows(ids, 16, 0), pad_rows(labels, 16, IGNORED), (2,) * len(slots))
        self._model._device = torch.device("cpu")  # where labels are is not known of tensors without data
        layout = self._model.layout(batch, slots)
        self._model._device = self._device
        with self._mode:
            tensors = {name: self._fake(getattr(layout, name)) for name in ("input_ids", "positions", "targets")}
        strict = Strict()
        with self._mode, strict:
            add_gradients(self._model, slots, replace(layout, **tensors))
        for slot in slots:
            self._model.blocks.leave(slot)
        return sum(strict.launches.values())


PACKS = {
    "1": [(4, 8)],
    "8": [(4, 8)] * 8,
    "16": [(4, 8)] * 16,
    "8 scalings": [(4, 4 + number) for number in range(8)],
    "4 ranks": [(r, 8) for r in (2, 4, 8, 16)],
    "16 of 4 ranks": [(r, 8) for r in (2, 4, 8, 16)] * 4,
}
COUNTED = (
    *(f"{pack}, merged" for pack in ("8", "16", "8 scalings", "16 of 4 ranks")),
    *(f"{pack}, single" for pack in ("1", "8", "4 ranks")),
)


def refuses(*arguments) -> bool:
    """Whether the strict mode lets an operation pass that a GPU would refuse, or wait for."""
    operation, *tensors = arguments
    try:
        with Strict():
            operation(*tensors)
    except RuntimeError:
        return True
    return False


def main() -> None:
    _setup_privateuseone_for_python_backend("away", backend_module=Away())
    masking_utils.find_packed_sequence_indices = lambda _: None
    few, more = Steps(1), Steps(2)
    found = {}
    for name in COUNTED:
        pack, _, os.environ[SETTING] = name.partition(", ")
        found[name] = more.launches(PACKS[pack]) - few.launches(PACKS[pack])
    with FakeTensorMode():
        here, half = torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bfloat16)
        there = here.to("away:0")
    found["refused"] = {
        "value": refuses(torch.Tensor.item, torch.ones(1)),
        "places": refuses(torch.nonzero, torch.ones(2)),
        "dtypes": refuses(torch.mm, here, half),
        "devices": refuses(torch.add, here, there),
        "copy": refuses(torch.Tensor.to, here, "away:0"),
        "none": refuses(torch.mm, here, here),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
