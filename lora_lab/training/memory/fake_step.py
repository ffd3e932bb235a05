"""A training step on a base without data: what it allocates, one allocation after the other.

The step is the engine's own (`step.count_step`), on a base of the same modules, shapes and dtypes (`fake_base`), and
the counter is the one that measures. So prediction and measurement differ only where kernels do.
"""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import masking_utils

from lora_lab.data.tokens import TokenizedDataset
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.adapters import Weights
from lora_lab.training.datasets import TokenizedSplits
from lora_lab.training.memory.fake_base import fake_base
from lora_lab.training.packed.generation import BROKEN
from lora_lab.training.packed.kept import kept_bytes
from lora_lab.training.packed.model import NOTHING_KEPT, PackedModel
from lora_lab.training.packed.slot import Slot
from lora_lab.training.packed.step import count_step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig

    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.training.base.loading import DeviceType
    from lora_lab.training.batch import PackedBatch
    from lora_lab.training.packed.model import Layout

TORCH_LOG = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True, slots=True)
class History:
    """What was live after each allocation of a step."""

    rows: np.ndarray
    """[n, len(TERMS)] bytes by term."""
    optimizer_from: int
    """Where the forward and backward pass end, and clipping and the optimizer begin."""


class FakeStep:
    """Steps of trials on one base.

    Args:
        config: Of the base.
        settings: Its quantization and dtype.
        device_type: Whether dtypes and kernels are those of a CPU or of a CUDA device.
        dtype: Of the base's weights, where it is not the one that `settings` give on such a device.
        fused_attention: Whether the CUDA device has FlashAttention (compute capability 8.0 and above).
    """

    def __init__(
        self,
        config: PretrainedConfig,
        settings: ModelSettings,
        device_type: DeviceType,
        *,
        dtype: torch.dtype | None,
        fused_attention: bool,
    ) -> None:
        self._base, self._mode = fake_base(config, settings, device_type, dtype)
        self._is_cuda, self._fused = device_type == "cuda", fused_attention
        self.linears = self._base.linears
        self._model = self._with_adapters()

    def _with_adapters(self) -> PackedModel | None:
        """The fake model with adapters; None where a forward pass cannot be made without data."""
        try:
            with self._without_data():
                return PackedModel(self._base)
        except RuntimeError:
            return None

    def history(self, config: TrialConfig, batch: PackedBatch) -> History | None:
        """What a step on these rows allocates; None where it depends on the values of tensors."""
        if self._model is None:
            return None
        slot = self._slot(config, batch)
        layout = self._fake(self._model.layout(batch, [slot]))
        try:
            with self._without_data(several_examples=_has_several_examples(batch)):
                live = count_step(self._model, self._base.model, slot, layout, keep_history=True)
        except RuntimeError:
            # Either the step asks for a value, or the stand-in of a kernel takes less than the kernel does. What is
            # wrong with the trial itself shows when it is measured.
            return None
        return History(np.array(live.history, dtype=np.float64), live.begun["optimizer"])

    def kept_bytes(self, rows: int, prompt: int, new: int) -> int | None:
        """What the base keeps at most while it answers, in bytes: of the prompts, or of all but the last token.

        None where its forward pass depends on the values of tensors, or cannot go on.
        """
        if self._model is None:
            return None
        try:
            with torch.no_grad(), self._without_data():
                ids = torch.zeros(rows, prompt + new - 1, dtype=torch.int64)
                _, of_prompts = self._model.next_logits(ids[:, :prompt], [None], [rows], NOTHING_KEPT, keep=True)
                most = kept_bytes(of_prompts)
                if new > 1:
                    _, kept = self._model.next_logits(ids[:, :-1], [None], [rows], NOTHING_KEPT, keep=True)
                    _, kept = self._model.next_logits(ids[:, -1:], [None], [rows], kept, keep=True)
                    most = max(most, kept_bytes(kept))
                return most
        except BROKEN:
            return None

    @contextmanager
    def _without_data(self, *, several_examples: bool = False) -> Iterator[None]:
        """Compute with shapes alone, by the kernels of the device that is predicted for."""
        with ExitStack() as stack:
            if self._is_cuda:
                attention = partial(_attention_on_cuda, fused=self._fused)
                stack.enter_context(_replaced(functional, "scaled_dot_product_attention", attention))
            if not several_examples:
                # transformers sees in the values of positions whether a row holds several. Without values it takes
                # that for granted, and would build a mask that most steps do not have.
                stack.enter_context(_replaced(masking_utils, "find_packed_sequence_indices", lambda _: None))
            stack.enter_context(_replaced(TORCH_LOG, "disabled", new=True))  # it prints what `history` catches
            stack.enter_context(self._mode)
            yield

    def _slot(self, config: TrialConfig, batch: PackedBatch) -> Slot:
        rows, length = batch.input_ids.shape
        ids = tuple(np.zeros(length, dtype=np.int64) for _ in range(rows))
        tokens = TokenizedDataset(ids, ids, fingerprint="", notes=())
        # Outside the mode: bitsandbytes computes the code tables of its optimizers, with values.
        slot = Slot(
            0,
            config,
            weights=self._weights(config),
            data=TokenizedSplits(tokens, tokens, None, {}, ()),
            device=self._base.device,
            compute_dtype=self._base.compute_dtype,
        )
        slot.begin([np.arange(rows)])
        slot.dropout.prepare(0, 0, rows, length)
        return slot

    def _weights(self, config: TrialConfig) -> dict[str, Weights]:
        dtype = torch.promote_types(self._base.adapter_dtype, torch.float32)  # as PEFT casts adapters
        weights = {}
        with self._mode:
            for name in resolve_targets(self.linears, config.lora):
                shape, r = self.linears.shapes[name], config.lora.r
                a, b = torch.empty(r, shape.d_in, dtype=dtype), torch.empty(shape.d_out, r, dtype=dtype)
                weights[name] = Weights(a, b)
        return weights

    def _fake(self, layout: Layout) -> Layout:
        """The layout with fake tensors, which the model computes with."""
        changes: dict[str, Any] = {
            field.name: self._mode.from_tensor(value)
            for field in dataclasses.fields(layout)
            if isinstance(value := getattr(layout, field.name), Tensor)
        }
        return dataclasses.replace(layout, **changes)


@contextmanager
def _replaced(place: Any, name: str, new: Any) -> Iterator[None]:
    """Let something of a library be another for a while."""
    real = getattr(place, name)
    setattr(place, name, new)
    try:
        yield
    finally:
        setattr(place, name, real)


def _has_several_examples(batch: PackedBatch) -> bool:
    """Whether positions begin again within a row."""
    return batch.position_ids is not None and bool((batch.position_ids.diff() != 1).any())


def _attention_on_cuda(  # noqa: PLR0917 -- the arguments of torch's own function
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    fused: bool = True,
) -> Tensor:
    """`scaled_dot_product_attention` by the kernel that torch 2.13 chooses on a CUDA device.

    FlashAttention takes half precision without a mask and heads up to 256 wide, also in groups; the
    memory-efficient kernel takes float32 and masks too, but no groups (`sdp_utils.cpp`,
    `check_batch_size_and_num_heads_dense<false>`); what neither takes is computed the plain way, which keeps the
    weights of all pairs of tokens.
    """
    operations = torch.ops.aten
    half = query.dtype in (torch.float16, torch.bfloat16)
    if fused and half and attn_mask is None and query.shape[-1] <= 256:
        kernel = operations._scaled_dot_product_flash_attention  # noqa: SLF001 -- torch chooses it inside
        return cast("Tensor", kernel(query, key, value, dropout_p, is_causal, scale=scale)[0])
    if query.shape[1] == key.shape[1]:
        kernel = operations._scaled_dot_product_efficient_attention  # noqa: SLF001
        return cast("Tensor", kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0])
    kernel = operations._scaled_dot_product_attention_math  # noqa: SLF001
    options = {"scale": scale, "enable_gqa": enable_gqa}
    return cast("Tensor", kernel(query, key, value, attn_mask, dropout_p, is_causal, None, **options)[0])
