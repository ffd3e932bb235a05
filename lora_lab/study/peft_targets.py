"""What PEFT is told so that it adapts what a trial adapts: its `target_modules` and the settings beside them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from lora_lab.study.targets import is_called, parameter_ending, resolve_experts, resolve_targets

if TYPE_CHECKING:
    from lora_lab.study.settings import LoraSettings
    from lora_lab.study.targets import LinearMap

PEFT_LAYER_INDEX = re.compile(r".*\.[^.]*\.(\d+)\.")
"""Where `layers_to_transform` looks for a module's layer: at the last number in its name, not at the first."""


class PeftTargets(NamedTuple):
    """What PEFT is told so that it adapts exactly what a trial adapts."""

    modules: tuple[str, ...]
    """`target_modules`."""
    layers: tuple[int, ...] | None
    """`layers_to_transform`, None for all layers, and where `modules` are full names."""
    parameters: tuple[str, ...]
    """`target_parameters`: weights of experts, and of modules whose names PEFT takes for those of experts."""


def peft_targets(linears: LinearMap, lora: LoraSettings) -> PeftTargets:
    """What an adapter sits on, in PEFT's words.

    Endings of names, and layer indices where not all layers are adapted, are given where they say as much as the full
    names, because that is what a reader of `adapter_config.json` expects.

    Raises:
        InputError: as `resolve_targets` and `resolve_experts`.
    """
    modules, experts = resolve_targets(linears, lora), _compact_experts(linears, lora)
    misread = [name for name in modules if name in linears.as_parameters]
    if misread:
        rest = tuple(name for name in modules if name not in linears.as_parameters)
        return PeftTargets(rest, None, (*(f"{name}.weight" for name in misread), *experts))
    return PeftTargets(*_compact_modules(linears, modules), experts)


def _compact_modules(linears: LinearMap, modules: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    if not modules:
        return (), None
    endings = {name.rsplit(".", 1)[-1] for name in modules}
    layers = {layer for name in modules if (layer := linears.layer_of(name)) is not None}
    by_ending = {
        name
        for name in (*linears.shapes, *linears.others)
        if name.rsplit(".", 1)[-1] in endings and (len(layers) == linears.num_layers or _peft_layer(name) in layers)
    }
    if by_ending != set(modules):
        return modules, None
    return tuple(sorted(endings)), tuple(sorted(layers)) if len(layers) < linears.num_layers else None


def _compact_experts(linears: LinearMap, lora: LoraSettings) -> tuple[str, ...]:
    """PEFT's `layers_to_transform` does not hold for parameters, so those of some layers are named in full."""
    parameters = resolve_experts(linears, lora)
    endings = tuple(sorted({parameter_ending(name) for name in parameters}))
    return endings if {name for name in linears.sizes if is_called(name, endings)} == set(parameters) else parameters


def _peft_layer(name: str) -> int | None:
    match = PEFT_LAYER_INDEX.match(name)
    return int(match.group(1)) if match else None
