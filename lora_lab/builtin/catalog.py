"""The base models that come with the package."""

from __future__ import annotations

from pathlib import Path

from lora_lab.common.errors import InputError

BUILTIN_MODELS: dict[str, str] = {"builtin/tiny-llama": "tiny-llama"}
"""Name in a study file -> folder in this package."""


def model_folder(name: str) -> Path:
    """The folder with weights, configuration and tokenizer of a built-in model; `InputError` if unknown."""
    if name not in BUILTIN_MODELS:
        known = ", ".join(sorted(BUILTIN_MODELS))
        raise InputError(f"no built-in model '{name}'; known are: {known}")
    return Path(__file__).parent / BUILTIN_MODELS[name]
