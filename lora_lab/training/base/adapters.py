"""What an adapter is, by PEFT's word: its config, its initial weights, its files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor, nn

from lora_lab.common.files import replacing_folder
from lora_lab.study.peft_targets import peft_targets
from lora_lab.study.targets import resolve_targets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_lab.study.settings import LoraSettings, ModelSettings
    from lora_lab.study.targets import LinearMap


class Weights(NamedTuple):
    """One module's adapter as PEFT has it: A [r, d_in] and B [d_out, r]."""

    a: Tensor
    b: Tensor


def lora_config(lora: LoraSettings, linears: LinearMap, *, fan_in_fan_out: bool = False) -> LoraConfig:
    """The `LoraConfig` under which PEFT adapts exactly the modules and weights of experts that this trial adapts."""
    modules, layers, parameters = peft_targets(linears, lora)
    alpha = lora.alpha
    return LoraConfig(
        task_type=TaskType(linears.task_type),
        r=lora.r,
        lora_alpha=int(alpha) if alpha.is_integer() else alpha,
        target_modules=list(modules),
        target_parameters=list(parameters) or None,
        layers_to_transform=list(layers) if layers is not None else None,
        lora_dropout=lora.lora_dropout,
        use_rslora=lora.use_rslora,
        init_lora_weights=lora.init_lora_weights,
        loftq_config=_loftq_config(lora),
        use_dora=lora.use_dora,
        bias=lora.bias,
        modules_to_save=list(lora.modules_to_save) if lora.modules_to_save else None,
        fan_in_fan_out=fan_in_fan_out,
    )


def _loftq_config(lora: LoraSettings) -> dict[str, Any]:
    return {} if lora.loftq is None else lora.loftq.model_dump()


def initial_weights(lora: LoraSettings, linears: LinearMap, seed: int, base_dtype: torch.dtype) -> dict[str, Weights]:
    """The adapter that `torch.manual_seed(seed); get_peft_model(base, config)` starts from, bit for bit.

    PEFT itself draws the numbers, on a skeleton that has the base's linear modules under their names but
    weights of stride 0, which take no memory. `base_dtype` is the dtype of the base's weights: PEFT rounds
    fresh adapters to it before it goes back to float32.

    Returns:
        A and B by full module name, on the CPU, float32 (or float64 for a float64 base).
    """
    skeleton = _skeleton(linears, base_dtype)
    config = lora_config(lora, linears)
    config.target_modules = list(resolve_targets(linears, lora))
    config.layers_to_transform = config.target_parameters = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, skeleton)
    dtype = torch.promote_types(base_dtype, torch.float32)
    sides = {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight)
        for name, module in skeleton.named_modules()
        if isinstance(module, LoraLayer)
    }
    return {name: Weights(a.detach().to(dtype), b.detach().to(dtype)) for name, (a, b) in sides.items()}


def _skeleton(linears: LinearMap, dtype: torch.dtype) -> nn.Module:
    root = nn.Module()
    for name, shape in linears.shapes.items():
        *path, last = name.split(".")
        parent = root
        for part in path:
            if not hasattr(parent, part):
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        with torch.device("meta"):
            linear = nn.Linear(shape.d_in, shape.d_out, bias=False)
        linear.weight = nn.Parameter(torch.zeros((), dtype=dtype).expand(shape.d_out, shape.d_in), requires_grad=False)
        parent.add_module(last, linear)
    return root


def save_adapter(
    folder: Path, config: LoraConfig, model: ModelSettings, weights: Mapping[str, Weights], model_path: str
) -> None:
    """Write a PEFT adapter folder (`adapter_config.json`, `adapter_model.safetensors`), whole or not at all.

    `PeftModel.from_pretrained(base, folder)` loads it. An adapter that is already there is replaced.

    Raises:
        StorageError: it cannot be written (disk full, no permission).
    """
    tensors = {
        f"base_model.model.{name}.lora_{side}.weight": tensor.detach().cpu().contiguous()
        for name, pair in weights.items()
        for side, tensor in (("A", pair.a), ("B", pair.b))
    }
    write_adapter(folder, config, model, tensors, model_path)


def write_adapter(
    folder: Path, config: LoraConfig, model: ModelSettings, tensors: Mapping[str, Tensor], model_path: str
) -> None:
    """Write an adapter folder from tensors that already have the names of PEFT's file."""
    config.base_model_name_or_path = model_path
    config.revision = model.revision
    config.inference_mode = True
    fields = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    with replacing_folder(folder) as partial:
        (partial / "adapter_model.safetensors").write_bytes(save(dict(tensors), metadata={"format": "pt"}))
        (partial / "adapter_config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
