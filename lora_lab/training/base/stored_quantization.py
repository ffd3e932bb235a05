"""Checkpoints whose weights are quantized on disk: what they are stored as, and whether a study says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_lab.common.errors import InputError

if TYPE_CHECKING:
    import torch

    from lora_lab.study.settings import ModelSettings

BITSANDBYTES = ("bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit")


def stored_quantization(config: Any) -> dict[str, Any] | None:
    """The `quantization_config` of a model's config, or of its text part; None for weights in full."""
    for part in (config, config.get_text_config()):
        stored = getattr(part, "quantization_config", None)
        if stored is not None:
            return dict(stored) if isinstance(stored, dict) else dict(stored.to_dict())
    return None


def check_stored_quantization(config: Any, settings: ModelSettings, location: str) -> None:
    """See that a study says of a quantized checkpoint what it is: its trials, memory and exports are told by that.

    Raises:
        InputError: the study says otherwise, or adapters are not trained on such weights here.
    """
    stored = stored_quantization(config)
    if stored is None:
        return
    method = str(stored.get("quant_method", "an unnamed method"))
    kind = _bitsandbytes_kind(stored)
    if kind is None:
        raise InputError(
            f"model.model_name_or_path: the weights of {location} are stored as {method}, on which no adapters are "
            "trained here; give the base in full precision, and model.quantization: nf4 where memory is short"
        )
    double = kind != "int8" and bool(stored.get("bnb_4bit_use_double_quant", False))
    if (settings.quantization, settings.double_quant) != (kind, double):
        given = settings.quantization + (" with double_quant" if settings.double_quant else "")
        raise InputError(
            f"model.quantization: the weights of {location} are stored as {kind}{' with' if double else ' without'} "
            f"double quantization, but the study says {given}; set model.quantization: {kind} and "
            f"model.double_quant: {str(double).lower()}"
        )


def _bitsandbytes_kind(stored: dict[str, Any]) -> str | None:
    if stored.get("quant_method", "bitsandbytes") not in BITSANDBYTES:
        return None
    if stored.get("load_in_8bit", False):
        return "int8"
    return str(stored.get("bnb_4bit_quant_type", "fp4")) if stored.get("load_in_4bit", False) else None


def skipped_modules(config: Any) -> list[str] | None:
    """The modules that a quantized checkpoint keeps in full; None where it leaves that to transformers."""
    stored = stored_quantization(config)
    return None if stored is None else stored.get("llm_int8_skip_modules")


def compute_in(config: Any, dtype: torch.dtype) -> None:
    """Let products with the stored weights be computed in this dtype, whatever the one is that they were saved with."""
    for part in (config, config.get_text_config()):
        stored = getattr(part, "quantization_config", None)
        if isinstance(stored, dict) and "bnb_4bit_compute_dtype" in stored:
            part.quantization_config = stored | {"bnb_4bit_compute_dtype": str(dtype).removeprefix("torch.")}
