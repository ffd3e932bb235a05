"""The linear modules of an architecture, read off its config alone: no weights, no device."""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from lora_lab.common.errors import InputError
from lora_lab.study.roles import roles_of
from lora_lab.study.targets import (
    CLASSIFICATION_HEADS,
    LAYER_INDEX,
    ExpertShape,
    InputLimits,
    LinearMap,
    LinearShape,
    is_saved,
)
from lora_lab.training.base.classification import classifier_config

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from transformers import PretrainedConfig

    from lora_lab.study.measures import TaskType
    from lora_lab.study.roles import Role

AN_EXPERT = "it takes the name for that of an expert's weights"
CHANGING_ROTATIONS = ("longrope", "dynamic")
MOST_UNUSED_ROWS = 2
"""Rows that a table of positions has beyond the positions of its config, as far as transformers' architectures go."""


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that LoRA can sit on (Linear, its quantized subclasses, Conv1D) by full name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def _shape(module: nn.Module) -> LinearShape:
    if isinstance(module, Conv1D):
        return LinearShape(d_in=module.weight.shape[0], d_out=module.weight.shape[1])
    return LinearShape(d_in=int(module.in_features), d_out=int(module.out_features))  # type: ignore[arg-type]


def linear_map(model: Any, task: TaskType = "CAUSAL_LM") -> LinearMap:
    """The `LinearMap` of a loaded (or meta) model for this task."""
    modules = linear_modules(model)
    head_module = model.get_output_embeddings() if task == "CAUSAL_LM" else None
    head = next((name for name, module in modules.items() if module is head_module), None)
    refused, as_parameters = _read_by_peft(model, modules)
    unique = {id(parameter): parameter for parameter in model.parameters()}
    return LinearMap(
        shapes={name: _shape(module) for name, module in modules.items()},
        head=head,
        num_layers=int(model.config.get_text_config().num_hidden_layers),
        total_parameters=sum(parameter.numel() for parameter in unique.values()),
        sizes={name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)},
        limits=_input_limits(model),
        roles=_roles(model, modules, head) | _head_roles(modules, task),
        others=frozenset(name for name, _ in model.named_modules() if name not in modules),
        refused=refused,
        as_parameters=as_parameters,
        experts=_experts(model),
        dropout=dict(sorted(_dropout(model), key=itemgetter(1))),  # of one name, the highest
        task_type=task,
    )


def _head_roles(modules: Iterable[str], task: TaskType) -> dict[str, Role]:
    if task != "SEQ_CLS":
        return {}
    return {name: "head" for name in modules if is_saved(f"{name}.weight", CLASSIFICATION_HEADS)}


def quantized(linears: LinearMap) -> LinearMap:
    """The same base with quantized linear modules, whose weights PEFT does not adapt as parameters."""
    return replace(
        linears,
        refused={**linears.refused, **dict.fromkeys(linears.as_parameters, AN_EXPERT)},
        as_parameters=frozenset(),
    )


def _roles(model: Any, modules: Mapping[str, nn.Module], head: str | None) -> dict[str, Role]:
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}

    def path(name: str) -> list[tuple[str, str]]:
        parts = name.split(".")
        return [(part, kinds.get(".".join(parts[: depth + 1]), "")) for depth, part in enumerate(parts)]

    def layer(name: str) -> int | None:
        match = LAYER_INDEX.search(name)
        return int(match.group(1)) if match else None

    text = _text_part(model)
    roles = roles_of({name: path(name) for name in modules}, {name: layer(name) for name in modules})
    elsewhere: dict[str, Role] = {name: "other modality" for name in modules if not name.startswith(text)}
    return roles | elsewhere | ({} if head is None else {head: "head"})


def _text_part(model: Any) -> str:
    """How the names of the language model's modules begin, in a model that has other parts beside it."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    return next((f"{name}." if name else "" for name, module in model.named_modules() if module is decoder), "")


def _read_by_peft(model: Any, modules: Mapping[str, nn.Module]) -> tuple[dict[str, str], frozenset[str]]:
    """The modules on which no adapter can sit, with the reasons, and those whose names PEFT takes for experts'.

    Tried out with one module of each name: PEFT adapts no `out_proj` in some Mamba models, and in mixtures of experts
    reads `gate_proj` as a part of the experts' parameters, which were modules of that name once, in any module.
    """
    reasons: dict[str, str | None] = {}
    for name, module in modules.items():
        ending = name.rsplit(".", 1)[-1]
        if ending not in reasons:
            reasons[ending] = _reason_of_base(ending, module) or _reason_of_peft(model.config, ending, module)
    by_name = {name: reasons[name.rsplit(".", 1)[-1]] for name in modules}
    refused = {name: reason for name, reason in by_name.items() if reason not in (None, AN_EXPERT)}
    return refused, frozenset(name for name, reason in by_name.items() if reason == AN_EXPERT)


@torch.no_grad()
def _reason_of_base(name: str, module: nn.Module) -> str | None:
    """Why an adapter behind this module could not act."""
    if name == "dt_proj":  # of Mamba's mixers, Jamba's and Falcon's too
        return "the base uses its weight without calling it"
    if type(module).__module__.startswith("transformers.models"):  # Llama 4's router gives two tensors
        weight = next(module.parameters())
        output = module(torch.zeros(1, _shape(module).d_in, dtype=weight.dtype, device=weight.device))
        if not isinstance(output, torch.Tensor):
            return "it gives more than one tensor"
    return None


def _reason_of_peft(config: PretrainedConfig, name: str, module: nn.Module) -> str | None:
    """What PEFT says against an adapter on this module of such a model; None where it takes it."""
    shape = _shape(module)
    with torch.device("meta"):
        alike = nn.Linear(shape.d_in, shape.d_out, bias=False)
    alone = nn.ModuleDict({"layer": nn.ModuleDict({name: alike})})
    alone.config = config
    try:
        with torch.random.fork_rng(devices=[]):  # adapters that are made draw numbers
            inject_adapter_in_model(LoraConfig(r=1, target_modules=[name]), alone)
    except ValueError as error:
        said = re.sub(r"^\[.*?\] ", "", " ".join(str(error).split())).split(". ")[0]
        return AN_EXPERT if said.startswith(("Cannot convert PEFT target", "No `target_modules` passed")) else said
    return None


def _dropout(model: Any) -> Iterator[tuple[str, float]]:
    """What the language model drops in training mode: modules for it, and shares that its functions are given."""
    for name, module in model.get_decoder().named_modules():
        if isinstance(module, nn.Dropout):
            if module.p > 0:
                yield name.rsplit(".", 1)[-1], module.p
            continue
        for attribute, value in vars(module).items():
            if "drop" in attribute and isinstance(value, float) and value > 0:
                yield attribute, value


def _experts(model: Any) -> dict[str, ExpertShape]:
    """The parameters that hold a matrix of each expert, told by the names or the classes of their modules."""
    return {
        f"{name}.{parameter_name}": ExpertShape(*parameter.shape)
        for name, module in model.named_modules()
        if "experts" in name.split(".") or type(module).__name__.endswith("Experts")
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3
    }


def _input_limits(model: Any) -> InputLimits:
    config = model.config.get_text_config()
    trained = getattr(config, "max_position_embeddings", None)
    tables = [] if trained is None else list(_position_tables(model, int(trained)))
    if config.model_type == "mpt":  # its ALiBi biases are made in the forward pass, for so many positions
        trained = config.max_seq_len
        tables = [trained]
    changing = dict(_changing_rotations(model))
    return InputLimits(
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        positions=min(tables, default=None),
        trained_positions=None if trained is None else int(trained),
        alike_up_to=min(changing.values(), default=None),
        remembers_longest="dynamic" in changing,
    )


def _changing_rotations(model: Any) -> Iterator[tuple[str, int]]:
    """The kinds of RoPE whose frequencies follow the longest row of a batch, and the length up to which they do not."""
    for module in model.get_decoder().modules():
        kinds = getattr(module, "rope_type", None)
        by_layer = kinds if isinstance(kinds, dict) else {None: kinds}
        for layer, kind in by_layer.items():
            parameters = module.config.rope_parameters if kind in CHANGING_ROTATIONS else {}
            own = parameters if layer is None else parameters.get(layer, {})
            if kind == "longrope":
                yield kind, int(own["original_max_position_embeddings"])
            elif kind == "dynamic":
                yield kind, int(module.original_max_seq_len)


def _position_tables(model: Any, positions: int) -> Iterator[int]:
    """The longest row that each table of positions has entries for.

    A table is an embedding, or a buffer of two dimensions or more (sinusoids, causal masks), that is about as long as
    the config has positions: OPT's and BART's begin with two unused rows, RoBERTa's behind that of the padding token.
    """
    tokens = model.get_input_embeddings()
    for module in model.get_decoder().modules():
        if isinstance(module, nn.Embedding) and module is not tokens and _is_about(module.num_embeddings, positions):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            yield module.num_embeddings - int(getattr(module, "offset", unused))
        elif not hasattr(module, "make_weights"):  # those of XGLM grow
            for buffer in module.buffers(recurse=False):
                if buffer.dim() > 1 and any(_is_about(side, positions) for side in buffer.shape):
                    yield positions


def _is_about(rows: int, positions: int) -> bool:
    return positions <= rows <= positions + MOST_UNUSED_ROWS


def linear_map_of_config(config: PretrainedConfig | Path | str, labels: Sequence[str] | None = None) -> LinearMap:
    """The `LinearMap` of a config object, of a folder with a `config.json`, or of that file itself.

    Args:
        config: The config, or where it is.
        labels: The classes of a model for `SEQ_CLS`; None: a causal language model.

    Raises:
        InputError: there is no such config, or it is not of a model that can do that.
    """
    if isinstance(config, (str, Path)):
        path = Path(config)
        try:
            config = AutoConfig.from_pretrained(path.parent if path.is_file() else path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a model config that transformers can read ({error})") from error
    if labels is not None:
        config = classifier_config(config, labels)
    return _read_once(ByContents(config), "CAUSAL_LM" if labels is None else "SEQ_CLS")


class ByContents:
    """A base's config that equals every config of the same contents: the key to what is worked out once from it."""

    def __init__(self, config: PretrainedConfig) -> None:
        self.config = copy.deepcopy(config)
        self._contents = type(config), config.to_json_string(use_diff=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByContents) and self._contents == other._contents

    def __hash__(self) -> int:
        return hash(self._contents)


@lru_cache(maxsize=16)
def _read_once(contents: ByContents, task: TaskType) -> LinearMap:
    """Once in a process: a command asks for its base's modules again and again."""
    return linear_map(meta_model(contents.config, task), task)


def meta_model(config: PretrainedConfig, task: TaskType = "CAUSAL_LM", **options: Any) -> Any:
    """The model of a config that does a task, without weights.

    Args:
        config: What `AutoConfig` reads.
        task: What it is for.
        options: More arguments of `from_config`, such as `dtype`.

    Raises:
        InputError: transformers has no such model for it, or lacks a package that it needs.
    """
    auto = AutoModelForCausalLM if task == "CAUSAL_LM" else AutoModelForSequenceClassification
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = auto.from_config(config, trust_remote_code=False, **options)
        except ImportError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{type(config).__name__} needs a package that is not here; install it, or give a base of text alone "
                f"({reason})"
            ) from error
        except ValueError as error:
            if UNKNOWN_CONFIG in str(error):
                raise InputError(no_model(type(config).__name__, task)) from error
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{type(config).__name__} is not a config that a model can be made of ({reason}); correct config.json"
            ) from error
    if task == "CAUSAL_LM" and type(model.config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(no_model(type(config).__name__))  # mllama's: it is made, and could never be loaded again
    return model


UNKNOWN_CONFIG = "Unrecognized configuration class"
"""How transformers begins to say that it has no causal language model for a config."""


def no_model(name: str, task: TaskType = "CAUSAL_LM") -> str:
    """What is said of a config, by the name of its class, for which transformers has no model that does a task."""
    if task != "CAUSAL_LM":
        return f"{name} is not the config of a model that has a head for classes in transformers; give one that is"
    return (
        f"{name} is not the config of a causal language model that transformers can load; give a decoder of text, and "
        "of a model that reads images or sound beside text, its language model alone"
    )
