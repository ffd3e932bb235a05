"""Which linear modules an adapter sits on, and how many parameters it trains: arithmetic on names and shapes.

A `LinearMap` is all that is needed of an architecture; `lora_lab.training.base.architecture` makes one from a
config alone, without weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_lab.common.errors import InputError
from lora_lab.study.settings import TARGET_PRESETS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lora_lab.study.settings import LoraSettings

LAYER_INDEX = re.compile(r"\.(\d+)\.")
ATTENTION_PARENTS = re.compile(r"\.(self_attn|attn|attention|self_attention|mixer_attn)\.")


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear module's input and output width."""

    d_in: int
    d_out: int


@dataclass(frozen=True, slots=True)
class InputLimits:
    """What a base can take in: token ids, and positions."""

    vocabulary: int | None = None
    """Rows of its input embedding; token ids are below."""
    positions: int | None = None
    """The longest row that it can read at all, where it looks positions up in a table; None for no such limit."""
    trained_positions: int | None = None
    """The longest row that it was made for (`max_position_embeddings`); None where its config names none."""


@dataclass(frozen=True, slots=True)
class LinearMap:
    """The linear modules of a base model by name, in the order of `named_modules`."""

    shapes: Mapping[str, LinearShape]
    head: str | None
    """Name of the output head (`lm_head`), None where the model has none."""
    num_layers: int
    total_parameters: int
    """Parameters of the bare base, tied weights counted once."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Elements of every parameter by its full name, tied ones under each name; for `bias` and `modules_to_save`."""
    limits: InputLimits = InputLimits()

    def layer_of(self, name: str) -> int | None:
        """Index of the decoder layer that a module belongs to, None for one outside the layers."""
        match = LAYER_INDEX.search(name)
        return int(match.group(1)) if match else None


def _preset(linears: LinearMap, preset: str) -> list[str]:
    body = [name for name in linears.shapes if name != linears.head]
    match preset:
        case "all-linear":
            return body
        case "all-linear+head":
            if linears.head is None:
                raise InputError("lora.target_modules: all-linear+head needs an output head; this model has none")
            return [*body, linears.head]
        case "attention":
            return [name for name in body if ATTENTION_PARENTS.search(f".{name}.")]
        case "mlp":
            return [
                name
                for name in body
                if linears.layer_of(name) is not None and not ATTENTION_PARENTS.search(f".{name}.")
            ]
    raise AssertionError(preset)


def _by_name(linears: LinearMap, targets: str | tuple[str, ...]) -> list[str]:
    """PEFT's own rule: a string is a regex for the full name, a list matches names or their endings."""
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise InputError(f"lora.target_modules: {targets!r} is no preset and no valid regex ({error})") from None
        return [name for name in linears.shapes if pattern.fullmatch(name)]
    return [name for name in linears.shapes if any(name == t or name.endswith(f".{t}") for t in targets)]


def _layer_indices(linears: LinearMap, layers: str | tuple[int, ...]) -> set[int]:
    count = linears.num_layers
    match layers:
        case "all":
            return set(range(count))
        case "first_half":
            return set(range((count + 1) // 2))
        case "last_half":
            return set(range((count + 1) // 2, count)) or {count - 1}
        case "every_2nd":
            return set(range(0, count, 2))
        case _:
            beyond = [index for index in layers if int(index) >= count]
            if beyond:
                raise InputError(f"lora.layers: the model has layers 0 to {count - 1}, but got {beyond[0]}")
            return {int(index) for index in layers}


def resolve_targets(linears: LinearMap, lora: LoraSettings) -> tuple[str, ...]:
    """Full names of the modules that the adapter sits on, in the model's order.

    The head is outside the layers: `layers` does not take it away.

    Raises:
        InputError: nothing matches, or a layer index is beyond the model's depth.
    """
    targets = lora.target_modules
    is_preset = isinstance(targets, str) and targets in TARGET_PRESETS
    named = _preset(linears, str(targets)) if is_preset else _by_name(linears, targets)
    layers = _layer_indices(linears, lora.layers)
    chosen = {
        name for name in named if (linears.layer_of(name) in layers if linears.layer_of(name) is not None else True)
    }
    if lora.layers != "all" and not any(linears.layer_of(name) is not None for name in chosen):
        chosen = set()
    if not chosen:
        known = sorted({name.rsplit(".", 1)[-1] for name in linears.shapes})
        raise InputError(
            f"lora.target_modules: {targets!r} with layers {lora.layers!r} matches no linear module; "
            f"the model has {', '.join(known)}"
        )
    return tuple(name for name in linears.shapes if name in chosen)


def compact_targets(linears: LinearMap, lora: LoraSettings) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """PEFT's `target_modules` and `layers_to_transform` that select exactly the modules that the adapter sits on.

    Module endings, and layer indices where not all layers are adapted, are given where they say as much as the full
    list of names, because that is what a reader of `adapter_config.json` expects; otherwise the full names.

    Raises:
        InputError: as `resolve_targets`.
    """
    modules = resolve_targets(linears, lora)
    endings = {name.rsplit(".", 1)[-1] for name in modules}
    layers = {layer for name in modules if (layer := linears.layer_of(name)) is not None}
    by_ending = {
        name
        for name in linears.shapes
        if name.rsplit(".", 1)[-1] in endings
        and (len(layers) == linears.num_layers or linears.layer_of(name) in layers)
    }
    if by_ending != set(modules):
        return modules, None
    return tuple(sorted(endings)), tuple(sorted(layers)) if len(layers) < linears.num_layers else None


def trainable_parameters(linears: LinearMap, lora: LoraSettings) -> int:
    """Exact number of trained parameters, as PEFT counts them.

    That is the sum of r (d_in + d_out) over the adapted modules, for DoRA also of d_out (the magnitudes), and what
    `bias` and `modules_to_save` add.
    """
    names = resolve_targets(linears, lora)
    shapes = [linears.shapes[name] for name in names]
    adapters = sum(lora.r * (shape.d_in + shape.d_out) + lora.use_dora * shape.d_out for shape in shapes)
    saved = {name for name in linears.sizes if _is_saved(name, lora.modules_to_save or ())}
    match lora.bias:
        case "none":
            biases: set[str] = set()
        case "all":
            biases = {name for name in linears.sizes if "bias" in name}  # PEFT's rule
        case "lora_only":
            biases = {f"{name}.bias" for name in names} & linears.sizes.keys()
    return adapters + sum(linears.sizes[name] for name in saved | biases)


def _is_saved(parameter: str, modules_to_save: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to a module whose name ends in one of these, which is PEFT's rule."""
    parts = parameter.split(".")[:-1]
    owners = (".".join(parts[: depth + 1]) for depth in range(len(parts)))
    return any(owner.endswith(modules_to_save) for owner in owners)


def full_rank_excess(linears: LinearMap, lora: LoraSettings) -> dict[str, int]:
    """Modules whose smaller side is below r, by that side: there the adapter outranks the matrix."""
    sides = {
        name: min(linears.shapes[name].d_in, linears.shapes[name].d_out) for name in resolve_targets(linears, lora)
    }
    return {name: side for name, side in sides.items() if side < lora.r}
