"""A trial's own PEFT model over the base that all trials share.

The model's tree of modules is the trial's own, while the tensors in it are the base's, but for those that the
trial changes. So no trial leaves a trace in the base, and the base is in memory once.
"""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import bitsandbytes
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor, nn

from lora_lab.study.targets import is_bias, resolve_targets
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.base.architecture import linear_modules
from lora_lab.training.base.classification import draw
from lora_lab.training.dropout import Dropout
from lora_lab.training.reference.checks import check
from lora_lab.training.reference.loftq import loftq

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from lora_lab.study.settings import LoftQSettings, LoraSettings, TrialConfig
    from lora_lab.training.base.loading import Base


def sharing_copy(model: nn.Module) -> Any:
    """A copy of the tree of modules; parameters, buffers and quantization constants are the original's own."""
    shared: dict[int, Any] = {}
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values()):  # noqa: SLF001 -- with ties
            shared[id(value)] = value
        for value in vars(module).values():
            if isinstance(value, Tensor):  # what some (RecurrentGemma) keep of their last pass, with its graph
                shared[id(value)] = value.detach()
        if (constants := getattr(module, "quant_state", None)) is not None:
            shared[id(constants)] = constants
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            if module.weight.CB is not None:
                module.init_8bit_state()  # as its first pass would: from the weight, which is shared, to the state
            shared[id(module.state)] = copy.copy(module.state)  # bitsandbytes and peft change what it points to
    return copy.deepcopy(model, shared)


def peft_model(base: Base, config: TrialConfig, dropout: Dropout) -> Any:
    """The model that the trial trains, as `torch.manual_seed(seed); get_peft_model(base, config)` makes it.

    A classification head that the base lacks is drawn first, as `from_pretrained` after that seed draws it.

    Args:
        base: Nothing of it is changed.
        config: What to train.
        dropout: Draws the masks in place of PEFT's dropout modules, where there is dropout.

    Raises:
        InputError: PEFT cannot do this to this base.
    """
    lora = config.lora
    check(base, config)
    model = sharing_copy(base.model)
    _take_apart(model, base, config)
    peft_config = lora_config(lora, base.linears, fan_in_fan_out=base.fan_in_fan_out)
    if lora.loftq is not None:
        peft_config.init_lora_weights = True  # and then as below
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what happens to the base, which is a copy; of a name that will change
        if config.training.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(config.training.seed)
        if base.drawn:
            draw(model, base.drawn)
        adapted = get_peft_model(model, peft_config)
    for index, layer in enumerate(lora_layers(adapted)):
        if lora.loftq is not None:
            _put_loftq(layer, lora, lora.loftq)
        if dropout.active:
            layer.lora_dropout["default"] = _Masked(dropout, index)
    return adapted


def trained_model(base: Base, config: TrialConfig, adapter: Path) -> Any:
    """The model that a trial left, in evaluation mode: its adapter folder over the base that all trials share.

    Args:
        base: Nothing of it is changed.
        config: The trial's.
        adapter: What `write_adapter` wrote.
    """
    if config.lora.loftq is not None:  # peft would quantize the base anew, which it can on a GPU only
        model = peft_model(base, config, Dropout(0.0, config.training.seed))
        set_peft_model_state_dict(model, load_file(adapter / "adapter_model.safetensors"))
    else:
        model = sharing_copy(base.model)
        _take_apart(model, base, config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name that will change
            model = PeftModel.from_pretrained(model, str(adapter))
    set_mode(model, training=False)
    return model


def _take_apart(model: nn.Module, base: Base, config: TrialConfig) -> None:
    """Give the model parameters of its own where the trial changes those of the base."""
    lora, modules = config.lora, dict(model.named_modules())
    if lora.initialization.changes_base:
        for name in resolve_targets(base.linears, lora):
            module = modules[name]  # gets a weight of its own, also where it is tied to another's
            module.weight = nn.Parameter(module.weight.detach().clone(), requires_grad=False)
    in_full = (*(lora.modules_to_save or ()), *base.linears.trained_in_full)
    if in_full and config.model.quantization != "none":
        for name, module in modules.items():
            if name.endswith(in_full):  # PEFT's rule; it copies them as they are
                _in_float32(module)
    if lora.bias != "none":
        for module in modules.values():
            _own_biases(module)


def _in_float32(module: nn.Module) -> None:
    """As `prepare_model_for_kbit_training` leaves a module; the head of a k-bit base may be in half precision."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter.detach().float(), requires_grad=False))


def _own_biases(module: nn.Module) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        if is_bias(name):
            setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))


def _put_loftq(layer: Any, lora: LoraSettings, settings: LoftQSettings) -> None:
    """Put LoftQ's adapters and base weights into the model, as `peft` does it on a GPU."""
    base_layer = layer.get_base_layer()
    bits: Any = settings.loftq_bits
    quantized, a, b = loftq(base_layer.weight, bits=bits, rank=lora.r, iterations=settings.loftq_iter)
    base_layer.weight.data = quantized
    side_a, side_b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    side_a.data, side_b.data = a.to(side_a.dtype), b.to(side_b.dtype)
    if lora.use_dora:  # magnitudes are those of the weight with its adapter
        layer.lora_magnitude_vector["default"].update_layer(
            base_layer=base_layer, lora_A=side_a, lora_B=side_b, scaling=layer.scaling["default"]
        )


def lora_layers(model: nn.Module) -> list[Any]:
    """The modules that PEFT put in the place of the adapted ones."""
    return [module for module in model.modules() if isinstance(module, LoraLayer)]


class _Masked(nn.Module):
    """LoRA dropout of one module, drawn as the packed engine draws it: the same at every try of the same step."""

    def __init__(self, dropout: Dropout, index: int) -> None:
        super().__init__()
        self._dropout, self._index = dropout, index

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = self._dropout.mask(self._index, x.reshape(-1, x.shape[-1])).view_as(x)
        return x * mask * self._dropout.gain


def set_mode(model: nn.Module, *, training: bool) -> None:
    """Put what belongs to the adapter into training or evaluation mode; the base has no dropout of its own.

    Linear modules stay in training mode: outside it, bitsandbytes repacks 4-bit weights on a CPU.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, (LoraLayer, _Masked)) or hasattr(module, "_gradient_checkpointing_func"):
            module.training = training
    for module in linear_modules(model).values():
        module.training = True


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, by name: A and B, magnitudes, biases, saved modules."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapter_tensors(model: Any) -> dict[str, Tensor]:
    """The adapter [on the CPU] by the names in its file, as `save_pretrained` would write it."""
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def for_plain_base(
    base: Base, lora: LoraSettings, tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor]
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The config and the tensors with which PEFT rebuilds the trained model from the plain base.

    PiSSA and OLoRA took `s B0 A0` out of the base, so the change from the plain base is `s (B A - B0 A0)`: an
    adapter of twice the rank. It is the conversion of `save_pretrained(path_initial_model_for_weight_conversion)`,
    which however drops all tensors but A and B (magnitudes, biases, saved modules).

    LoftQ took a quantization error out of the base, which has full rank. Its file keeps `init_lora_weights: loftq`,
    and so `from_pretrained` makes the same quantized base again before it puts A and B in.

    Args:
        base: The plain base.
        lora: The trial's settings.
        tensors: The trained adapter.
        initial: The same before the first step.
    """
    config = lora_config(lora, base.linears, fan_in_fan_out=base.fan_in_fan_out)
    if not lora.initialization.is_convertible:
        return config, dict(tensors)
    config.init_lora_weights = True
    config.r *= 2
    config.lora_alpha *= 2**0.5 if lora.use_rslora else 2
    converted = dict(tensors)
    for name, tensor in tensors.items():
        if ".lora_A." in name:
            converted[name] = torch.cat([tensor, initial[name]], dim=0)
        elif ".lora_B." in name:
            converted[name] = torch.cat([tensor, -initial[name]], dim=1)
    return config, converted
