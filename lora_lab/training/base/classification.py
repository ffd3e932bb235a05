"""Bases with a head that gives the class of a row (`task_type: SEQ_CLS`): config, and weights that no checkpoint has.

A checkpoint that was never trained on these classes has no such head. `from_pretrained` then draws it at random; here
it is drawn once more for every trial, from the trial's own seed, as `torch.manual_seed(seed)` before `from_pretrained`
would have it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lora_lab.common.errors import InputError
from lora_lab.study.targets import CLASSIFICATION_HEADS, LAYER_INDEX, is_saved

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PretrainedConfig


def classifier_config(config: PretrainedConfig, labels: Sequence[str], tokenizer: Any = None) -> PretrainedConfig:
    """A copy of a base's config with these classes, and with the pad token by which the end of a row is found."""
    config = copy.deepcopy(config)
    config.problem_type = "single_label_classification"
    config.id2label = dict(enumerate(labels))
    config.label2id = {name: index for index, name in enumerate(labels)}
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is not None:
        for part in (config, config.get_text_config()):
            part.pad_token_id = pad
    return config


def stored_order(config: PretrainedConfig, labels: Sequence[str]) -> list[int] | None:
    """Where each class stands among the outputs of the head that a checkpoint has; None where it has other classes.

    `LABEL_0`, `LABEL_1`, ... is how transformers calls the classes 0, 1, ...
    """
    stored = [str(config.id2label[index]) for index in sorted(config.id2label)]
    stored = [name.removeprefix("LABEL_") if name == f"LABEL_{index}" else name for index, name in enumerate(stored)]
    return [stored.index(name) for name in labels] if sorted(stored) == sorted(labels) else None


def head_weights(model: Any) -> frozenset[str]:
    """The names of the weights of a model's head, by PEFT's rule."""
    return frozenset(name for name, _ in model.named_parameters() if is_saved(name, CLASSIFICATION_HEADS))


def reorder_head(model: Any, head: Iterable[str], order: Sequence[int]) -> None:
    """Put the outputs of a stored head into the order of the study's classes."""
    for name in head:
        parameter = model.get_parameter(name)
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Linear) and owner.out_features == len(order):
            parameter.data = parameter.data[list(order)]


def missing_weights(report: dict[str, Any], location: str) -> frozenset[str]:
    """The weights that are not in a checkpoint, by the report of `from_pretrained`: the head's, and those around it.

    Raises:
        InputError: weights of layers are among them, so that config and weights do not belong together.
    """
    missing = {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}
    inside = sorted(name for name in missing if LAYER_INDEX.search(name) or "embeddings" in name or "embed_" in name)
    if inside:
        raise InputError(
            f"model.model_name_or_path: {location} lacks {len(inside)} weights that its config.json asks for, or has "
            f"them in another shape (first: {inside[0]}); give a folder whose config and weights belong together"
        )
    return frozenset(missing)


@torch.no_grad()
def draw(model: Any, names: Iterable[str]) -> None:
    """Give a model these weights anew, of its own, as transformers draws what a checkpoint lacks."""
    chosen = set(names)
    for name, parameter in list(model.named_parameters()):
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        if name in chosen:
            module._parameters[attribute] = nn.Parameter(torch.empty_like(parameter, device="cpu"), requires_grad=False)  # noqa: SLF001 -- registering it checks more
        module._parameters[attribute]._is_hf_initialized = name not in chosen  # noqa: SLF001 -- transformers' own mark
    for name, module in model.named_modules():
        inside = any(one.startswith(f"{name}." if name else "") for one in chosen)
        module._is_hf_initialized = not inside  # noqa: SLF001
    model.initialize_weights()
    for name in chosen:
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        fresh = module._parameters[attribute]  # noqa: SLF001
        module._parameters[attribute] = nn.Parameter(fresh.data.to(device_of(model)), requires_grad=False)  # noqa: SLF001


def device_of(model: Any) -> torch.device:
    """Where the input embeddings are."""
    device: torch.device = model.get_input_embeddings().weight.device
    return device
