"""What `peft` cannot do to a base, or would do wrong without a word; said before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_lab.common.errors import InputError
from lora_lab.study.initializations import INITIALIZATIONS
from lora_lab.study.targets import adapted, full_rank_excess, is_bias, is_saved, resolve_targets
from lora_lab.training.base.abilities import require_recomputation, require_separate_examples

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lora_lab.study.settings import LoraSettings, TrialConfig
    from lora_lab.training.base.loading import Base


def check(base: Base, config: TrialConfig) -> None:
    """See that the base can be adapted as the trial asks.

    Raises:
        InputError: it cannot.
    """
    if config.data.packing:
        require_separate_examples(base.model, base.device)
    if config.training.gradient_checkpointing:
        require_recomputation(base.model)
    lora, quantization = config.lora, config.model.quantization
    misread = [name for name in resolve_targets(base.linears, lora) if name in base.linears.as_parameters]
    if misread and not lora.initialization.fits_parameters:
        raise InputError(
            f"lora.init_lora_weights: {lora.init_lora_weights} is not computed for {misread[0]}, whose name peft takes "
            "for that of an expert; use true, false or gaussian, or adapt attention only"
        )
    if lora.initialization.changes_base:
        _check_init(base, lora)
    if lora.use_dora and quantization == "int8" and base.device.type == "cpu":
        # dequantize_module_weight drops the scales there
        raise InputError("lora.use_dora: peft cannot train it on an int8 base on a CPU; use nf4, or a GPU")
    if lora.bias != "none" and not any(is_bias(name) for name, _ in base.model.named_parameters()):
        raise InputError(f"lora.bias: {lora.bias} trains the base's biases, but this base has none; set it to none")
    if base.drawn:
        _check_drawn(base, (*(lora.modules_to_save or ()), *base.linears.trained_in_full))
    if lora.modules_to_save is not None:
        _check_saved(base, lora, lora.modules_to_save)


def _check_init(base: Base, lora: LoraSettings) -> None:
    init, key = lora.init_lora_weights, "lora.init_lora_weights"
    if base.dtype == torch.float64:
        raise InputError(f"{key}: {init} is computed in float32, but model.dtype is float64; set it to float32")
    if base.fan_in_fan_out and not lora.initialization.fits_conv1d:
        changing = {name: one for name, one in INITIALIZATIONS.items() if one.changes_base}
        fitting = " or ".join(str(name) for name, one in changing.items() if one.fits_conv1d)
        raise InputError(f"{key}: peft's {init} does not fit the Conv1D modules of this base; use {fitting}")
    excess = full_rank_excess(base.linears, lora)
    if excess:
        name, side = min(excess.items(), key=lambda pair: pair[1])
        raise InputError(f"{key}: {init} takes r={lora.r} directions of every matrix, but {name} has {side}; lower r")
    if lora.loftq_config is not None and lora.loftq_config.loftq_bits == 2:
        raise InputError("lora.loftq_config.loftq_bits: peft has LoftQ for 4 and 8 bits, but got 2")


def _check_drawn(base: Base, in_full: tuple[str, ...]) -> None:
    """What is random at the start and frozen would stay random, and would not be in the adapter's file."""
    frozen = sorted(name for name in base.drawn if not is_saved(name, in_full))
    if frozen:
        module = _whole_module(base, frozen[0])
        raise InputError(
            f"lora.modules_to_save: the checkpoint has no weights for {module}, which would stay random; add "
            f"{module.rsplit('.', 1)[-1]} to lora.modules_to_save, or take a checkpoint that has them"
        )


def _whole_module(base: Base, weight: str) -> str:
    """The largest module around a weight of which the checkpoint has nothing."""
    parts = weight.split(".")
    weights = [name for name, _ in base.model.named_parameters()]
    around = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return next(one for one in around if all(name in base.drawn for name in weights if name.startswith(f"{one}.")))


def _check_saved(base: Base, lora: LoraSettings, names: Iterable[str]) -> None:
    targets = adapted(base.linears, lora)
    modules = dict(base.model.named_modules())
    for name in names:
        matches = [module for module in modules if module.endswith(name)]  # PEFT's rule
        weights = [weight for module in matches for weight in modules[module].parameters()]
        if not weights:
            known = sorted({module.rsplit(".", 1)[-1] for module in modules if module})
            raise InputError(f"lora.modules_to_save: no module is called {name}; the model has {', '.join(known)}")
        twice = [target for target in targets if any(f"{target}.".startswith(f"{module}.") for module in matches)]
        if twice:
            key = "target_parameters" if twice[0] in base.linears.experts else "target_modules"
            raise InputError(
                f"lora.modules_to_save: {name} would be trained in full, but lora.{key} puts an adapter on "
                f"{twice[0]}; leave one of them out"
            )
        if not all(weight.is_floating_point() for weight in weights):
            raise InputError(f"lora.modules_to_save: {name} is quantized, and such weights cannot be trained in full")
