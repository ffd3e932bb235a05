"""What torch and bitsandbytes can do here, found out by doing it."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from typing import Any

import torch

from lora_lab.training.device import device_bytes

SIDE = 128
"""Of the matrix that is quantized on trial."""
MOST_OFF = 0.2
"""Of a normal matrix's standard deviation: nf4 in blocks of 64 is off by 0.1, a broken kernel by 1."""


def devices() -> list[dict[str, Any]]:
    """The CUDA devices that torch sees: name, memory in bytes, compute capability, and whether they have bfloat16."""
    return [_device(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]


def _device(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    free, total = device_bytes(device) or (0, 0)
    return {
        "name": properties.name,
        "free_bytes": free,
        "total_bytes": total,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "bfloat16": properties.major >= 8,
    }


def why_no_device() -> str | None:
    """Why torch sees no GPU although there seems to be one; None where nothing speaks for one."""
    if torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return None
    if torch.version.cuda is None:
        return (
            f"there is an NVIDIA driver, but torch {torch.__version__} is a build for CPUs; "
            "install the one for CUDA, as https://pytorch.org/get-started/locally says"
        )
    return (
        f"there is an NVIDIA driver, but torch for CUDA {torch.version.cuda} sees no device; "
        "see whether nvidia-smi lists one, CUDA_VISIBLE_DEVICES hides it, or the driver is too old"
    )


def quantizes(device: torch.device) -> str | None:
    """Quantize a matrix to 4 and to 8 bits on a device and back; what went wrong, None where nothing did."""
    try:
        from bitsandbytes import functional

        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(SIDE, SIDE, generator=generator).to(device)
        packed, state = functional.quantize_4bit(matrix, quant_type="nf4")
        off = (functional.dequantize_4bit(packed, state) - matrix).std().item()
        codes, scales, _ = functional.int8_vectorwise_quant(matrix.half())
        off8 = (functional.int8_vectorwise_dequant(codes, scales).float() - matrix).std().item()
    except Exception as error:  # noqa: BLE001 -- a missing library, kernel or symbol, each by an error of its own
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    if not (off < MOST_OFF and off8 < MOST_OFF):
        return f"a matrix comes back from 4 bits off by {off:.2f} and from 8 bits off by {off8:.2f} of its spread"
    return None


def bitsandbytes_version() -> str:
    """The version that is installed."""
    return version("bitsandbytes")
