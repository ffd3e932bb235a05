"""A packed training step on tensors that say "cuda" and hold nothing, in a CUDA build of torch without a GPU.

Beside `strict_step`, whose device is made up, this has CUDA's own dispatch: the operations of bitsandbytes and of fused
optimizers that CUDA has, and what torch chooses by the name of the device. Nothing is computed.
"""

from __future__ import annotations

import dataclasses
import heapq
import itertools
from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from functools import partial

import bitsandbytes.optim.optimizer
import numpy as np
import torch
from strict_step import Strict
from torch import Tensor
from torch.nn import functional
from transformers import masking_utils

from lora_lab.data.tokens import TokenizedDataset
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.adapters import Weights
from lora_lab.training.batch import PackedBatch
from lora_lab.training.datasets import TokenizedSplits
from lora_lab.training.memory import fake_base, fake_step
from lora_lab.training.packed.model import PackedModel
from lora_lab.training.packed.slot import Slot
from lora_lab.training.packed.step import add_gradients

CUDA = torch.device("cuda", 0)


@contextmanager
def replaced(place, name, new):
    real = getattr(place, name)
    setattr(place, name, new)
    try:
        yield
    finally:
        setattr(place, name, real)


@torch.no_grad()
def backward(root: Tensor) -> None:
    """`torch.autograd.backward`, whose own engine asks a device that is not here for its streams.

    As that engine does, it refuses gradients on another device than their tensor's, and casts other dtypes.
    """
    gradients, missing, seen = defaultdict(dict), Counter(), {root.grad_fn}
    stack = [root.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                missing[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    order = itertools.count()
    ready = [(-root.grad_fn._sequence_nr(), next(order), root.grad_fn)]
    gradients[root.grad_fn][0] = torch.ones_like(root)
    while ready:
        node = heapq.heappop(ready)[2]
        for (following, place), gradient in zip(
            node.next_functions, _given(node, gradients.pop(node, {})), strict=False
        ):
            if following is None:
                continue
            if gradient is not None:
                more, before = _fitting(gradient, following, place), gradients[following].get(place)
                gradients[following][place] = more if before is None else before + more
            missing[following] -= 1
            if not missing[following]:
                heapq.heappush(ready, (-following._sequence_nr(), next(order), following))


def _given(node, gradients: dict[int, Tensor]):
    """What a node gives to those that follow it."""
    if hasattr(node, "variable"):
        if 0 in gradients:
            node.variable.grad.add_(gradients[0])
        return ()
    if not gradients:
        return (None,) * len(node.next_functions)
    whole = [
        gradients[place] if place in gradients else torch.zeros(tuple(meta.shape), dtype=meta.dtype, device=meta.device)
        for place, meta in enumerate(node._input_metadata)
    ]
    is_python = isinstance(node, torch.autograd.function.BackwardCFunction)
    given = node.apply(*whole) if is_python else node(*whole)
    return given if isinstance(given, tuple) else (given,)


def _fitting(gradient: Tensor, node, place: int) -> Tensor:
    meta = node._input_metadata[place]
    if gradient.device != meta.device:
        raise RuntimeError(f"{node.name()} is given a gradient on {gradient.device} for a tensor on {meta.device}")
    return gradient.sum_to_size(tuple(meta.shape)).to(meta.dtype)


def _on_cuda(make):
    """What a function makes, made on the device."""

    def made(*arguments):
        with torch.device(CUDA):
            return make(*arguments)

    return made


def _tables(optimizer) -> None:
    """The tables of 8-bit codes, which bitsandbytes computes, as tensors without data."""
    for name in ("dynamic", "udynamic"):
        optimizer.name2qmap[name] = torch.empty(256)


class CudaSteps:
    """Steps of packs on a base of such a config, as on a CUDA device."""

    def __init__(self, config, settings) -> None:
        self.waits = 0
        """How often the host waited for the device in all steps."""
        with replaced(fake_base, "_materialize", _on_cuda(fake_base._materialize)):
            base, self._mode = fake_base.fake_base(config, settings, "cuda")
        self._base = dataclasses.replace(base, device=CUDA)
        with self._cuda():
            self._model = PackedModel(self._base)

    def _wait(self, *_args, **_keywords) -> None:
        self.waits += 1

    @contextmanager
    def _cuda(self, *, several_examples: bool = False):
        attention = partial(fake_step._attention_on_cuda, fused=True)
        with ExitStack() as stack:
            for change in (
                replaced(functional, "scaled_dot_product_attention", attention),
                replaced(torch, "Generator", lambda *_: torch._C.Generator("cpu")),
                replaced(torch.cuda, "synchronize", self._wait),
                replaced(bitsandbytes.optim.optimizer, "sync_gpu", self._wait),
                replaced(bitsandbytes.optim.optimizer.Optimizer8bit, "fill_qmap", _tables),
                replaced(torch.autograd, "backward", backward),
                replaced(torch._C, "_current_graph_task_id", lambda: 7),  # recomputation asks for it
                replaced(fake_step.TORCH_LOG, "disabled", new=True),
            ):
                stack.enter_context(change)
            if not several_examples:
                stack.enter_context(replaced(masking_utils, "find_packed_sequence_indices", lambda _: None))
            stack.enter_context(self._mode)
            yield

    def _slot(self, number: int, config, rows: int, length: int) -> Slot:
        dtype = torch.promote_types(self._base.adapter_dtype, torch.float32)
        ids = tuple(np.zeros(length, dtype=np.int64) for _ in range(rows))
        tokens = TokenizedDataset(ids, ids, fingerprint="", notes=())
        with self._cuda():
            weights = {}
            for name in resolve_targets(self._base.linears, config.lora):
                shape, r = self._base.linears.shapes[name], config.lora.r
                weights[name] = Weights(
                    torch.empty(r, shape.d_in, dtype=dtype, device=CUDA),
                    torch.empty(shape.d_out, r, dtype=dtype, device=CUDA),
                )
            slot = Slot(
                number,
                config,
                weights=weights,
                data=TokenizedSplits(tokens, tokens, None, {}, ()),
                device=CUDA,
                compute_dtype=self._base.compute_dtype,
            )
        slot.begin([np.arange(rows)])
        slot.dropout.prepare(0, 0, rows, length)
        return slot

    def step(self, configs, length: int, *, several_examples: bool = False) -> dict[str, int]:
        """Launches of a step of these trials, by its part.

        Raises:
            RuntimeError: an operation mixes devices or dtypes, or asks for a value.
        """
        rows = [config.training.per_device_train_batch_size for config in configs]
        slots = [
            self._slot(number, config, own, length)
            for number, (config, own) in enumerate(zip(configs, rows, strict=True))
        ]
        with self._cuda():
            slots = list(self._model.blocks.arrange(slots))
            self._model.blocks.spans(slots, [length * own for own in rows])  # makes the views
        ids = torch.zeros(sum(rows), length, dtype=torch.int64)
        halves = torch.cat([torch.arange(length // 2), torch.arange(length - length // 2)])
        positions = halves.repeat(sum(rows), 1) if several_examples else None
        batch = PackedBatch(ids, ids.clone(), tuple(rows), positions)
        self._model._device = torch.device("cpu")  # where labels are is not known of tensors without data
        layout = self._model.layout(batch, slots)
        self._model._device = CUDA
        with self._mode:
            tensors = {
                field.name: self._mode.from_tensor(value).to(CUDA)
                for field in dataclasses.fields(layout)
                if isinstance(value := getattr(layout, field.name), Tensor)
            }
        gradients, optimizer = Strict(), Strict()
        with self._cuda(several_examples=several_examples):
            with gradients:
                losses = add_gradients(self._model, slots, dataclasses.replace(layout, **tensors))
            with optimizer:
                torch.stack([*losses.unbind(), *(slot.clip() for slot in slots)])
                for slot in slots:
                    slot.step_optimizer()
        for slot in slots:
            self._model.blocks.leave(slot)
        return {"gradients": sum(gradients.launches.values()), "optimizer": sum(optimizer.launches.values())}
