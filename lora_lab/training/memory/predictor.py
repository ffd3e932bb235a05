"""Memory before the run: what one training step of a trial needs at its peak. No weights and no GPU are needed.

For a CUDA device the step is run with the dtypes of one, and attention takes the kernel that torch would take for
these dtypes and heads (`fake_step`). Not modeled: what cuDNN or Triton kernels keep for themselves, fragmentation,
and evaluation, whose batches are held without gradients.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_lab.data.tokens import IGNORED
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.architecture import ByContents, linear_map_of_config
from lora_lab.training.batch import PackedBatch, Padding, pad_positions, pad_rows
from lora_lab.training.live_bytes import TERMS
from lora_lab.training.memory.fake_step import FakeStep, History

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import torch
    from transformers import PretrainedConfig

    from lora_lab.study.settings import ModelSettings, TrialConfig
    from lora_lab.study.targets import LinearMap
    from lora_lab.training.base.loading import DeviceType

CONTEXT_BYTES = 832 * 2**20
"""What CUDA and its libraries take outside torch's allocator (765 MiB), and cuBLAS's workspaces inside it (67 MiB):
measured on an H200 with torch 2.11, after products, attention and a backward pass."""
LOGITS = TERMS.index("logits")
SHALLOW = (4, 5)
"""Depths from which that of a deeper base of equal layers is extrapolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPrediction:
    """The peak of one training step of a trial that trains alone, in bytes, and what it consists of."""

    base: int
    """Weights and buffers of the base."""
    quantization: int
    """The constants of quantized weights."""
    adapters: int
    """The adapter's parameters, and their copy in the dtype of the computation where that is another one."""
    gradients: int
    optimizer: int
    activations: int
    """What the forward pass keeps for the backward pass, and what is in work."""
    logits: int
    dequantization: int
    """Weights in full precision while a product needs them."""
    rounding: int
    """What the allocator adds to sizes."""
    context: int
    """CUDA's context; 0 on a CPU."""

    @property
    def total(self) -> int:
        """The peak."""
        return sum(dataclasses.astuple(self))

    @property
    def allocated(self) -> int:
        """The part that torch's allocator hands out, which is what is measured as `peak_memory_bytes`."""
        return self.total - self.context

    @property
    def shared(self) -> int:
        """The part that all trials of a pack share."""
        return self.base + self.quantization + self.dequantization + self.context

    @property
    def own(self) -> int:
        """The part that every trial of a pack adds."""
        return self.total - self.shared


class MemoryPredictor:
    """Predicts the memory of trials on one base.

    Args:
        config: Of the base; neither weights nor a tokenizer are needed.
        settings: Quantization and dtype of the base.
        device_type: Whether dtypes and kernels are those of a CPU or of a CUDA device.
        dtype: Of the base's weights, where it is not the one that `settings` give on such a device.
        fused_attention: Whether the CUDA device has FlashAttention (compute capability 8.0 and above).

    Raises:
        InputError: the config is not of a model for the settings' task.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        settings: ModelSettings,
        device_type: DeviceType,
        *,
        dtype: torch.dtype | None = None,
        fused_attention: bool = True,
    ) -> None:
        def step(one: PretrainedConfig) -> FakeStep:
            return FakeStep(one, settings, device_type, dtype=dtype, fused_attention=fused_attention)

        self._context_bytes = CONTEXT_BYTES if device_type == "cuda" else 0
        self._step = None if settings.classifies else step(config)
        self.linears = linear_map_of_config(config, settings.labels) if self._step is None else self._step.linears
        self._padding = Padding.of(device_type, self.linears.limits)
        is_deepened = self._step is not None and _is_uniform(config, self.linears)
        shallow = [_with_layers(config, depth) for depth in SHALLOW] if is_deepened else []
        self._shallow = [step(one) for one in shallow]
        self._known: dict[Hashable, dict[int, np.ndarray | None]] = {}

    def predict(self, config: TrialConfig, batch: PackedBatch | None = None) -> MemoryPrediction | None:
        """The peak of a training step.

        Args:
            config: The trial; its model must be the predictor's.
            batch: The rows of the step; by default as many as the trial trains on at once, all of full length.

        Returns:
            None where the base's forward pass depends on the values of tensors, so that it cannot be run without, and
            for classification, whose step is PEFT's and the Trainer's.
        """
        if self._step is None:
            return None
        batch = batch or full_batch(config, self._padding)
        family, r = self._family(config, batch), config.lora.r
        known = self._known.setdefault(family, {})
        if r not in known:
            on_the_line = _on_the_line(known, r) if config.training.optim != "adamw_8bit" else None
            known[r] = self._candidates(config, batch) if on_the_line is None else on_the_line
        rows = known[r]
        if rows is None:
            return None
        peak = rows[int(rows.sum(axis=1).argmax())]
        terms = {term: round(float(value)) for term, value in zip(TERMS, peak, strict=True)}
        return MemoryPrediction(**terms, context=self._context_bytes)

    def kept_bytes(self, rows: int, prompt: int, new: int) -> int | None:
        """What generation keeps at most of rows whose prompts have `prompt` tokens, and whose answers have `new`.

        None where the base's forward pass depends on the values of tensors, or cannot go on from what it keeps: then
        all is read again at every token, and nothing is kept.
        """
        if self._shallow:
            few, more = (step.kept_bytes(rows, prompt, new) for step in self._shallow)
            if few is not None and more is not None:
                return few + (more - few) * (self.linears.num_layers - SHALLOW[0])
        return None if self._step is None else self._step.kept_bytes(rows, prompt, new)

    def _family(self, config: TrialConfig, batch: PackedBatch) -> Hashable:
        """What decides the memory beside r."""
        lora, training = config.lora, config.training
        labels = tuple((batch.labels != IGNORED).sum(dim=1).tolist())
        how = (training.optim, training.gradient_checkpointing, lora.lora_dropout > 0, batch.position_ids is not None)
        return (resolve_targets(self.linears, lora), tuple(batch.input_ids.shape), labels, how)

    def _candidates(self, config: TrialConfig, batch: PackedBatch) -> np.ndarray | None:
        """Bytes by term [n, len(TERMS)] at the moments of a step that can be its peak."""
        if self._shallow and self._is_alike_in_all_layers(config):
            few, more = (step.history(config, batch) for step in self._shallow)
            deep = None if few is None or more is None else _deeper(few, more, self.linears.num_layers)
            if deep is not None:
                return deep
        assert self._step is not None
        history = self._step.history(config, batch)
        return None if history is None else history.rows

    def _is_alike_in_all_layers(self, config: TrialConfig) -> bool:
        """Whether every layer has the same adapters, also in a base of fewer layers."""
        if config.lora.layers != "all" or (
            isinstance(config.lora.target_modules, str) and "." in config.lora.target_modules
        ):
            return False
        layers: dict[int, set[str]] = {index: set() for index in range(self.linears.num_layers)}
        for name in resolve_targets(self.linears, config.lora):
            index = self.linears.layer_of(name)
            if index is not None:
                layers[index].add(name.split(f".{index}.", 1)[1])
        return len(set(map(frozenset, layers.values()))) == 1


def predictor_of(
    config: PretrainedConfig,
    settings: ModelSettings,
    device_type: DeviceType,
    *,
    dtype: torch.dtype,
    fused_attention: bool,
) -> MemoryPredictor:
    """The predictor of a base, made once in a process: its fake bases and what it knows serve every later engine.

    Args:
        config: Of the base.
        settings: Quantization and dtype of the base.
        device_type: Whether dtypes and kernels are those of a CPU or of a CUDA device.
        dtype: Of the base's weights.
        fused_attention: Whether the CUDA device has FlashAttention.
    """
    return _made_once(ByContents(config), settings, device_type, dtype, fused_attention)


@functools.lru_cache(maxsize=8)  # a study may search all kinds of quantization
def _made_once(
    config: ByContents, settings: ModelSettings, device_type: DeviceType, dtype: torch.dtype, fused_attention: bool
) -> MemoryPredictor:
    return MemoryPredictor(config.config, settings, device_type, dtype=dtype, fused_attention=fused_attention)


def full_batch(config: TrialConfig, padding: Padding) -> PackedBatch:
    """A trial's largest batch: `per_device_train_batch_size` rows of `max_length` tokens, every one a label.

    Args:
        config: The trial.
        padding: To which length the rows are padded.
    """
    rows, longest = config.training.per_device_train_batch_size, config.data.max_length
    length = padding.training(longest)
    tokens = [np.zeros(longest, dtype=np.int64)] * rows
    halves = [np.concatenate([np.arange(longest // 2), np.arange(longest - longest // 2)])] * rows
    return PackedBatch(
        pad_rows(tokens, length, 0),
        pad_rows(tokens, length, IGNORED),
        (rows,),
        position_ids=pad_positions(halves, length) if config.data.packing else None,
    )


def _on_the_line(known: Mapping[int, np.ndarray | None], r: int) -> np.ndarray | None:
    """The rows for another r than two known ones: each of a step's allocations is linear in r.

    Only the rounding of sizes to 512 bytes is not, so the two that lie farthest apart are taken. (8-bit AdamW is not
    linear: it keeps small tensors in 32 bits.)
    """
    low, high = min(known, default=r), max(known, default=r)
    first, last = known.get(low), known.get(high)
    if low == high or first is None or last is None or first.shape != last.shape:
        return None
    rows: np.ndarray = first + (last - first) * ((r - low) / (high - low))
    return rows


def _is_uniform(config: PretrainedConfig, linears: LinearMap) -> bool:
    """Whether the base has many layers, and nothing in its config or its modules makes one unlike the others."""
    depth = linears.num_layers
    if depth <= SHALLOW[-1] + 1 or config.get_text_config() is not config:
        return False
    lists = [value for value in config.to_dict().values() if isinstance(value, list) and len(value) == depth]
    if any(value != values[0] for values in lists for value in values):
        return False
    layers: dict[int | None, list[Any]] = {}
    for name, shape in linears.shapes.items():
        index = linears.layer_of(name)
        layers.setdefault(index, []).append((name.rsplit(".", 1)[-1], shape))
    layers.pop(None, None)
    return len(layers) == depth and all(layer == layers[0] for layer in layers.values())


def _with_layers(config: PretrainedConfig, depth: int) -> PretrainedConfig:
    shallow = copy.deepcopy(config)
    full = config.num_hidden_layers
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == full:
            setattr(shallow, name, value[:depth])
    shallow.num_hidden_layers = depth
    return shallow


def _deeper(few: History, more: History, depth: int) -> np.ndarray | None:
    """The moments of a step that can be its peak, for a base of `depth` equal layers, from two of few layers.

    A layer adds the same to everything that is live after it, and takes it away in the backward pass. So the peak
    lies in the last layers of the forward pass, in the loss, in the layers that the backward pass begins with, or in
    the optimizer. There both histories are aligned, at the first logits and at the optimizer, and every moment is
    linear in the number of layers. The first layer is unlike the others (nothing before it needs a gradient), and the
    second still sees that: they are left out.
    """
    pair = (few, more)
    turns = [int((history.rows[:, LOGITS] > 0).argmax()) for history in pair]
    backward = [history.optimizer_from - turn for history, turn in zip(pair, turns, strict=True)]
    optimizer = [len(history.rows) - history.optimizer_from for history in pair]
    forward_layer, backward_layer = turns[1] - turns[0], backward[1] - backward[0]
    if min(*turns, forward_layer, backward_layer) <= 0 or optimizer[0] != optimizer[1]:
        return None
    windows = []
    for history, turn in zip(pair, turns, strict=True):
        passes = history.rows[turn - 2 * forward_layer : turn + backward[0] - 2 * backward_layer]
        windows.append(np.concatenate([passes, history.rows[history.optimizer_from :]]))
    first, second = windows
    deep: np.ndarray = first + (second - first) * (depth - SHALLOW[0])
    return deep
