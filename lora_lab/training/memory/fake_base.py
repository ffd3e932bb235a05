"""A base without weights: its modules are real, its tensors have shapes, dtypes and sizes, but no data.

It behaves as the one that `load_base` gives, down to the dtypes that quantization and its preparation leave, so that
a training step on it allocates what a real one does.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.quantizers import AutoHfQuantizer

from lora_lab.training.base.architecture import linear_map, meta_model, quantized
from lora_lab.training.base.loading import DTYPES, frozen_base, quantization_config
from lora_lab.training.base.stored_quantization import skipped_modules

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from lora_lab.study.settings import ModelSettings
    from lora_lab.training.base.loading import Base, DeviceType

BLOCK = 64
"""Weights that share one quantization constant (bitsandbytes' default)."""
NESTED_BLOCK = 256
"""Constants that share one of their own, under double quantization."""
FOUR_BIT_CODES, EIGHT_BIT_CODES = 16, 256


def fake_base(
    config: PretrainedConfig, settings: ModelSettings, device_type: DeviceType, dtype: torch.dtype | None = None
) -> tuple[Base, FakeTensorMode]:
    """The base of a config, with the dtypes that it has on a device of this type; the tensors say "cpu".

    Returns:
        The base, and the mode under which its tensors can be computed with.

    Raises:
        InputError: the config is not of a causal language model.
    """
    dtype = dtype or DTYPES.get(settings.dtype, torch.float32 if device_type == "cpu" else torch.bfloat16)
    model = _meta_model(config, dtype)
    linears = linear_map(model)
    if settings.quantization != "none":
        linears = quantized(linears)
        quantization = quantization_config(settings, dtype)
        quantization.llm_int8_skip_modules = skipped_modules(config)
        quantizer = AutoHfQuantizer.from_config(quantization)
        quantizer._process_model_before_weight_loading(model, device_map=None)  # noqa: SLF001 -- no public name
    base = frozen_base(
        model,
        settings,
        dtype,
        torch.device("cpu"),
        linears=linears,
        tokenizer=None,
        location="",
        device_type=device_type,
    )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        _materialize(model, dtype)
    return base, mode


def _meta_model(config: PretrainedConfig, dtype: torch.dtype) -> Any:
    config = copy.deepcopy(config)
    if hasattr(config, "quantization_config"):  # a loaded base's config has it
        del config.quantization_config
    return meta_model(config, dtype=dtype)


def _materialize(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace every meta tensor by a fake one; tied weights stay tied."""
    fakes: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001 -- nn.Module refuses to swap devices
            if parameter is None:
                continue
            if id(parameter) not in fakes:
                packed = _quantized(module, dtype) if name == "weight" else None
                fakes[id(parameter)] = _frozen(_like(parameter)) if packed is None else packed
            module._parameters[name] = fakes[id(parameter)]  # noqa: SLF001
        for name, buffer in module._buffers.items():  # noqa: SLF001
            if buffer is not None:
                module._buffers[name] = _like(buffer)  # noqa: SLF001


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def _quantized(module: nn.Module, dtype: torch.dtype) -> nn.Parameter | None:
    """The weight of a module that bitsandbytes quantized, None for any other module."""
    if isinstance(module, Linear4bit):
        return _four_bit(module, dtype)
    if isinstance(module, Linear8bitLt):
        return _eight_bit(module)
    return None


def _four_bit(module: Linear4bit, dtype: torch.dtype) -> nn.Parameter:
    settings = module.weight
    count = module.in_features * module.out_features
    blocks = -(-count // BLOCK)
    state = QuantState(
        absmax=torch.empty(blocks),
        shape=torch.Size((module.out_features, module.in_features)),
        code=torch.empty(FOUR_BIT_CODES),
        blocksize=BLOCK,
        quant_type=settings.quant_type,
        dtype=dtype,
    )
    if settings.compress_statistics:
        absmax = torch.empty(-(-blocks // NESTED_BLOCK))
        state.state2 = QuantState(
            absmax=absmax, code=torch.empty(EIGHT_BIT_CODES), blocksize=NESTED_BLOCK, dtype=torch.float32
        )
        state.absmax, state.offset, state.nested = torch.empty(blocks, dtype=torch.uint8), torch.empty(()), True
    weight = _frozen(torch.empty((count + 1) // 2, 1, dtype=torch.uint8))
    weight.quant_state = state  # type: ignore[attr-defined]
    return weight


def _eight_bit(module: Linear8bitLt) -> nn.Parameter:
    weight = _frozen(torch.empty(module.out_features, module.in_features, dtype=torch.int8))
    weight.CB = weight.SCB = None  # type: ignore[attr-defined]  # as after a first pass
    module.state.CB, module.state.SCB = weight.data, torch.empty(module.out_features)
    return weight
