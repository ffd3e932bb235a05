"""Which modules and weights of experts an adapter sits on, and how many parameters it trains: arithmetic on names.

A `LinearMap` is all that is needed of an architecture; `lora_lab.training.base.architecture` makes one from a
config alone, without weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from lora_lab.common.errors import InputError
from lora_lab.study.roles import FEED_FORWARD, TOKEN_MIXERS, roles_of
from lora_lab.study.settings import TARGET_PRESETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lora_lab.study.measures import TaskType
    from lora_lab.study.roles import Role
    from lora_lab.study.settings import LoraSettings

CLASSIFICATION_HEADS = ("classifier", "score")
"""The endings of the names of modules that PEFT trains in full and saves for `TaskType.SEQ_CLS`."""
LAYER_INDEX = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class LinearShape:
    """A linear module's input and output width."""

    d_in: int
    d_out: int


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """A parameter that holds one matrix of each expert, which each get an adapter of rank r."""

    experts: int
    rows: int
    columns: int

    @property
    def elements(self) -> int:
        """Weights of all experts."""
        return self.experts * self.rows * self.columns

    def adapter_elements(self, r: int) -> int:
        """Elements of A and B of all experts, whichever side of a matrix the input is."""
        return self.experts * r * (self.rows + self.columns)


@dataclass(frozen=True, slots=True)
class InputLimits:
    """What a base can take in: token ids, and positions."""

    vocabulary: int | None = None
    """Rows of its input embedding; token ids are below."""
    positions: int | None = None
    """The longest row that it can read at all, where it looks positions up in a table; None for no such limit."""
    trained_positions: int | None = None
    """The longest row that it was made for (`max_position_embeddings`); None where its config names none."""
    alike_up_to: int | None = None
    """A longer row changes how the base reads every row of its batch (longrope, dynamic RoPE); None where none does."""
    remembers_longest: bool = False
    """Whether it changes how later batches are read too (dynamic RoPE)."""


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
    roles: Mapping[str, Role] = field(default_factory=dict)
    """What each linear module does; told from the names alone where it is left out."""
    others: frozenset[str] = frozenset()
    """The names of all modules that are not linear, which PEFT compares with `target_modules` too."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """The linear modules on which no adapter can sit, by PEFT's word or the base's nature, and why."""
    as_parameters: frozenset[str] = frozenset()
    """The linear modules whose names PEFT takes for those of experts: it adapts them only as parameters, by
    `target_parameters`."""
    experts: Mapping[str, ExpertShape] = field(default_factory=dict)
    """The parameters that hold the weights of many experts at once and are no linear modules."""
    dropout: Mapping[str, float] = field(default_factory=dict)
    """The dropout that the base's own config asks for, by the name of what drops."""
    task_type: TaskType = "CAUSAL_LM"
    """What the model is made for; one for `SEQ_CLS` has a head that is trained in full."""

    def __post_init__(self) -> None:
        if not self.roles:
            paths = {name: [(part, "") for part in name.split(".")] for name in self.shapes}
            roles = roles_of(paths, {name: self.layer_of(name) for name in paths})
            head: dict[str, Role] = {} if self.head is None else {self.head: "head"}
            object.__setattr__(self, "roles", roles | head)

    def layer_of(self, name: str) -> int | None:
        """Index of the decoder layer that a module belongs to, None for one outside the layers."""
        match = LAYER_INDEX.search(name)
        return int(match.group(1)) if match else None

    @property
    def trained_in_full(self) -> tuple[str, ...]:
        """What PEFT adds to `modules_to_save` for such a model."""
        return CLASSIFICATION_HEADS if self.task_type == "SEQ_CLS" else ()

    def is_usable(self, name: str) -> bool:
        """Whether an adapter on a module can learn from text and be loaded by PEFT."""
        is_saved = self.roles[name] == "head" and bool(self.trained_in_full)
        return self.roles[name] != "other modality" and name not in self.refused and not is_saved


def _preset(linears: LinearMap, preset: str) -> list[str]:
    body = [name for name in linears.shapes if name != linears.head and linears.is_usable(name)]
    match preset:
        case "all-linear":
            return body
        case "all-linear+head":
            if linears.head is None:
                raise InputError("lora.target_modules: all-linear+head needs an output head; this model has none")
            return [*body, linears.head]
        case "attention":
            return [name for name in body if linears.roles[name] in TOKEN_MIXERS]
        case "mlp":
            return [name for name in body if linears.roles[name] in FEED_FORWARD]
        case "none":
            return []
    raise AssertionError(preset)


def _by_name(linears: LinearMap, targets: str | tuple[str, ...]) -> list[str]:
    """PEFT's own rule (a string is a regex for the full name, a list matches names or their endings), for text only."""
    named = _named(linears, targets)
    refused = next((name for name in named if name in linears.refused), None)
    if refused is not None:
        raise InputError(
            f"lora.target_modules: no adapter can sit on {refused} ({linears.refused[refused]}); leave it out"
        )
    usable = [name for name in named if linears.is_usable(name)]
    if named and not usable:
        if linears.roles[named[0]] == "head":
            raise InputError(
                f"lora.target_modules: {named[0]} is the classification head, which is trained in full (task_type "
                "SEQ_CLS); name other modules"
            )
        raise InputError(
            f"lora.target_modules: {targets!r} matches modules of the vision or audio part alone (first: {named[0]}), "
            "which text gives no gradient; name modules of the language model"
        )
    return usable


def _named(linears: LinearMap, targets: str | tuple[str, ...]) -> list[str]:
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

    The head is outside the layers: `layers` does not take it away. A preset may match none where the adapter is on
    experts.

    Raises:
        InputError: nothing matches, a layer index is beyond the model's depth, or PEFT cannot load such an adapter.
    """
    targets = lora.target_modules
    is_preset = isinstance(targets, str) and targets in TARGET_PRESETS
    named = _preset(linears, str(targets)) if is_preset else _by_name(linears, targets)
    if is_preset and linears.trained_in_full:  # a pooler, which all-linear has too
        named = [name for name in named if not is_saved(f"{name}.weight", lora.modules_to_save or ())]
    layers = _layer_indices(linears, lora.layers)
    chosen = {
        name for name in named if (linears.layer_of(name) in layers if linears.layer_of(name) is not None else True)
    }
    if lora.layers != "all" and not any(linears.layer_of(name) is not None for name in chosen):
        chosen = set()
    misread = next((name for name in chosen if name in linears.as_parameters), None)
    if misread is not None and (lora.lora_dropout or lora.use_dora):
        raise InputError(
            f"lora.lora_dropout: peft takes the name {misread} for that of an expert and loads an adapter there only "
            "without dropout and without DoRA; set lora_dropout to 0 and use_dora to false, or adapt attention"
        )
    if not chosen and not (is_preset and resolve_experts(linears, lora)):
        known = sorted({name.rsplit(".", 1)[-1] for name in linears.shapes if linears.is_usable(name)})
        experts = " (its experts are no linear modules: see lora.target_parameters)" if linears.experts else ""
        raise InputError(
            f"lora.target_modules: {targets!r} with layers {lora.layers!r} matches no linear module; "
            f"the model has {', '.join(known)}{experts}"
        )
    return tuple(name for name in linears.shapes if name in chosen)


def resolve_experts(linears: LinearMap, lora: LoraSettings) -> tuple[str, ...]:
    """Full names of the weights of experts that the adapter sits on, in the model's order.

    Raises:
        InputError: the base has no experts, or none of such a name or in such a layer.
    """
    targets, key = lora.target_parameters, "lora.target_parameters"
    if targets == "none":
        return ()
    if not linears.experts:
        raise InputError(
            f"{key}: {_shown(targets)} needs fused weights of experts, but this base has none; set it to none, and "
            "adapt its modules by target_modules (mlp, all-linear)"
        )
    known = ", ".join(sorted({parameter_ending(name) for name in linears.experts}))
    if isinstance(targets, tuple):
        for target in targets:
            if not any(is_called(name, (target,)) for name in linears.experts):
                raise InputError(
                    f"{key}: {target!r} matches no weights of experts; the model has {known}; "
                    "linear modules are named in target_modules"
                )
    named = [name for name in linears.experts if targets == "experts" or is_called(name, targets)]
    layers = _layer_indices(linears, lora.layers)
    chosen = tuple(name for name in named if linears.layer_of(name) in layers)
    if not chosen:
        having = sorted({str(linears.layer_of(name)) for name in named}, key=int)
        raise InputError(
            f"{key}: {_shown(targets)} with layers {lora.layers!r} matches no weights of experts; "
            f"they are in layers {', '.join(having)}"
        )
    return chosen


def _shown(targets: str | tuple[str, ...]) -> str:
    return targets if isinstance(targets, str) else repr(list(targets))


def is_called(name: str, targets: str | tuple[str, ...]) -> bool:
    """PEFT's rule for a list: a name in full, or its ending."""
    return any(name == target or name.endswith(f".{target}") for target in targets)


def parameter_ending(name: str) -> str:
    """The parameter's own name and its module's, which tells it from others."""
    return ".".join(name.split(".")[-2:])


def adapted(linears: LinearMap, lora: LoraSettings) -> tuple[str, ...]:
    """Full names of all that the adapter sits on: linear modules, then weights of experts.

    Raises:
        InputError: as `resolve_targets` and `resolve_experts`.
    """
    return (*resolve_targets(linears, lora), *resolve_experts(linears, lora))


class Placement(NamedTuple):
    """Where an adapter sits, in words."""

    chosen: tuple[str, ...]
    """The modules that are adapted, by what they do: `attention: k_proj, q_proj (2 layers)`."""
    left_out: tuple[str, ...]
    """The other linear modules, and parameters with the weights of experts."""


def placement(linears: LinearMap, lora: LoraSettings) -> Placement:
    """What an adapter sits on and what it leaves out.

    Raises:
        InputError: as `resolve_targets`.
    """
    chosen, experts = resolve_targets(linears, lora), resolve_experts(linears, lora)
    taken = set(chosen)
    left = [name for name in linears.shapes if name not in taken]
    frozen = [name for name in linears.experts if name not in experts]
    reasons: dict[str, list[str]] = {}
    for name in left:
        if name in linears.refused:
            reasons.setdefault(linears.refused[name], []).append(name)
    in_full = [name for name in left if linears.roles[name] == "head" and linears.trained_in_full]
    left = [name for name in left if name not in in_full]
    head = (f"head: {_endings(in_full)}, trained in full",) if in_full else ()
    refused = (f"no adapter on {_endings(names)}: {reason}" for reason, names in reasons.items())
    return Placement(
        (*_by_role(linears, chosen), *_experts(linears, experts)),
        (*head, *_by_role(linears, left), *_experts(linears, frozen, ", which stay frozen"), *refused),
    )


def _by_role(linears: LinearMap, names: Sequence[str]) -> tuple[str, ...]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(linears.roles[name], []).append(name)
    return tuple(f"{role}: {_endings(group)}{_depth(linears, group)}" for role, group in sorted(groups.items()))


def _endings(names: Sequence[str]) -> str:
    return ", ".join(sorted({name.removesuffix(".weight").rsplit(".", 1)[-1] for name in names}))


def _depth(linears: LinearMap, names: Sequence[str]) -> str:
    layers = {layer for name in names if (layer := linears.layer_of(name)) is not None}
    return f" ({len(layers)} of {linears.num_layers} layers)" if 0 < len(layers) < linears.num_layers else ""


def _experts(linears: LinearMap, names: Sequence[str], rest: str = "") -> tuple[str, ...]:
    if not names:
        return ()
    return (
        f"experts: {_endings(names)}{_depth(linears, names)}, {experts_share(linears, names):.0%} of the base{rest}",
    )


def experts_share(linears: LinearMap, names: Iterable[str]) -> float:
    """The share of the base's parameters that these weights of experts are."""
    return sum(linears.experts[name].elements for name in names) / linears.total_parameters


def unusual(linears: LinearMap) -> bool:
    """Whether an architecture has more than attention, feed-forward modules and a head."""
    return bool({*linears.roles.values()} - {"attention", "mlp", "head"}) or bool(linears.refused or linears.experts)


def trainable_parameters(linears: LinearMap, lora: LoraSettings) -> int:
    """Exact number of trained parameters, as PEFT counts them.

    That is the sum of r (d_in + d_out) over the adapted modules and over every matrix of adapted experts, for DoRA also
    of d_out (the magnitudes), and what `bias` and `modules_to_save` add.
    """
    names = resolve_targets(linears, lora)
    shapes = [linears.shapes[name] for name in names]
    adapters = sum(lora.r * (shape.d_in + shape.d_out) + lora.use_dora * shape.d_out for shape in shapes)
    adapters += sum(linears.experts[name].adapter_elements(lora.r) for name in resolve_experts(linears, lora))
    in_full = (*(lora.modules_to_save or ()), *linears.trained_in_full)
    saved = {name for name in linears.sizes if is_saved(name, in_full)}
    match lora.bias:
        case "none":
            biases: set[str] = set()
        case "all":
            biases = {name for name in linears.sizes if is_bias(name)}
        case "lora_only":
            biases = {f"{name}.bias" for name in names} & linears.sizes.keys()
    return adapters + sum(linears.sizes[name] for name in saved | biases)


def is_bias(parameter: str) -> bool:
    """Whether `bias: all` trains a parameter of this name, by PEFT's rule; biases of fused experts have other names."""
    return parameter.rpartition(".")[-1] == "bias"


def is_saved(parameter: str, modules_to_save: tuple[str, ...]) -> bool:
    """Whether a parameter belongs to a module whose name ends in one of these, which is PEFT's rule."""
    parts = parameter.split(".")[:-1]
    owners = (".".join(parts[: depth + 1]) for depth in range(len(parts)))
    return any(owner.endswith(modules_to_save) for owner in owners)


def full_rank_excess(linears: LinearMap, lora: LoraSettings) -> dict[str, int]:
    """What is adapted and has a smaller side below r, by that side: there the adapter outranks the matrix."""
    sides = {
        name: min(linears.shapes[name].d_in, linears.shapes[name].d_out) for name in resolve_targets(linears, lora)
    }
    experts = {name: linears.experts[name] for name in resolve_experts(linears, lora)}
    sides |= {name: min(shape.rows, shape.columns) for name, shape in experts.items()}
    return {name: side for name, side in sides.items() if side < lora.r}
