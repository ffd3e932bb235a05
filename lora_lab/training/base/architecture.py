"""The linear modules of an architecture, read off its config alone: no weights, no device."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lora_lab.common.errors import InputError
from lora_lab.study.targets import InputLimits, LinearMap, LinearShape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PretrainedConfig

MOST_UNUSED_ROWS = 2
"""Rows that a table of positions has beyond the positions of its config, as far as transformers' architectures go."""


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that LoRA can sit on (Linear, its quantized subclasses, Conv1D) by full name, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}


def _shape(module: nn.Module) -> LinearShape:
    if isinstance(module, Conv1D):
        return LinearShape(d_in=module.weight.shape[0], d_out=module.weight.shape[1])
    return LinearShape(d_in=int(module.in_features), d_out=int(module.out_features))  # type: ignore[arg-type]


def linear_map(model: Any) -> LinearMap:
    """The `LinearMap` of a loaded (or meta) causal language model."""
    modules = linear_modules(model)
    head_module = model.get_output_embeddings()
    head = next((name for name, module in modules.items() if module is head_module), None)
    unique = {id(parameter): parameter for parameter in model.parameters()}
    return LinearMap(
        shapes={name: _shape(module) for name, module in modules.items()},
        head=head,
        num_layers=int(model.config.get_text_config().num_hidden_layers),
        total_parameters=sum(parameter.numel() for parameter in unique.values()),
        sizes={name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)},
        limits=_input_limits(model),
    )


def _input_limits(model: Any) -> InputLimits:
    config = model.config.get_text_config()
    trained = getattr(config, "max_position_embeddings", None)
    tables = [] if trained is None else list(_position_tables(model, int(trained)))
    if config.model_type == "mpt":  # its ALiBi biases are made in the forward pass, for so many positions
        trained = config.max_seq_len
        tables = [trained]
    return InputLimits(
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        positions=min(tables, default=None),
        trained_positions=None if trained is None else int(trained),
    )


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


def linear_map_of_config(config: PretrainedConfig | Path | str) -> LinearMap:
    """The `LinearMap` of a config object, of a folder with a `config.json`, or of that file itself.

    Raises:
        InputError: there is no such config, or it is not of a causal language model.
    """
    if isinstance(config, (str, Path)):
        path = Path(config)
        try:
            config = AutoConfig.from_pretrained(path.parent if path.is_file() else path, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a model config that transformers can read ({error})") from error
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]  # transformers lists every model that it has
            raise InputError(
                f"{type(config).__name__} is not the config of a causal language model; give one that is ({reason})"
            ) from error
    return linear_map(model)
