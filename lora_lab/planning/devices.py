"""The devices that a plan can be made for."""

from __future__ import annotations

from dataclasses import dataclass

from lora_lab.common.errors import InputError
from lora_lab.common.sizes import parse_size


@dataclass(frozen=True, slots=True)
class Device:
    """A device that a plan is made for."""

    name: str
    total_bytes: int | None
    """None for a CPU, whose memory is not ours alone."""
    is_cuda: bool
    fused_attention: bool = True
    """Whether FlashAttention runs there (compute capability 8.0 and above)."""


def _gpu(name: str, gibibytes: float, *, fused_attention: bool = True) -> Device:
    return Device(name, round(gibibytes * 2**30), is_cuda=True, fused_attention=fused_attention)


DEVICES = {
    device.name: device
    for device in (
        _gpu("H200", 139.7),
        _gpu("H100-80GB", 79.1),
        _gpu("A100-80GB", 79.1),
        _gpu("A100-40GB", 39.4),
        _gpu("L40S", 44.4),
        _gpu("L4", 22.0),
        _gpu("T4", 14.6, fused_attention=False),
        _gpu("RTX-4090", 23.5),
        _gpu("RTX-3090", 23.6),
        _gpu("V100-32GB", 31.7, fused_attention=False),
    )
}
"""Devices by the names that `--device` takes, with about the memory that CUDA reports there."""


def device_named(text: str) -> Device:
    """A device of `DEVICES`, or a CUDA device of so many bytes.

    Raises:
        InputError: neither.
    """
    for name, device in DEVICES.items():
        if name.lower() == text.lower():
            return device
    try:
        size = parse_size(text)
    except InputError:
        known = ", ".join(DEVICES)
        raise InputError(f"--device: {text!r} is no known device; give {known}, or its bytes such as 24GB") from None
    return Device(f"CUDA device of {text.strip()}", size, is_cuda=True)
