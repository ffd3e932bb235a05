"""The device that studies train on, and whether quantized bases work on it."""

from __future__ import annotations

from lora_lab.checkup.finding import Finding
from lora_lab.common.sizes import bytes_text
from lora_lab.training.base.loading import default_device
from lora_lab.training.device_check import bitsandbytes_version, devices, quantizes, why_no_device


def device() -> Finding:
    """The GPUs, or why a CPU trains."""
    found = devices()
    values = {"cuda": found}
    if not found:
        reason = why_no_device()
        if reason:
            return Finding("device", "problem", reason, values)
        return Finding("device", "note", "no GPU: studies train on the CPU, which suits small bases", values)
    words = [
        f"{one['name']}, {bytes_text(one['free_bytes'])} of {bytes_text(one['total_bytes'])} free, compute capability "
        f"{one['compute_capability']}{'' if one['bfloat16'] else ', no bfloat16'}"
        for one in found
    ]
    more = f"; a study trains on the first of {len(found)}" if len(found) > 1 else ""
    short = found[0]["free_bytes"] < found[0]["total_bytes"] // 2
    full = "; others use more than half of its memory (nvidia-smi shows who)" if short else ""
    return Finding("device", "note" if short else "ok", "; ".join(words) + more + full, values)


def quantization() -> Finding:
    """Whether bitsandbytes computes here what nf4, fp4 and int8 bases need."""
    values, reason = {"bitsandbytes": bitsandbytes_version()}, quantizes(default_device())
    if reason is not None:
        text = f"bitsandbytes {bitsandbytes_version()} fails here ({reason}); only unquantized bases can be trained"
        return Finding("quantization", "problem", text, values)
    return Finding("quantization", "ok", f"bitsandbytes {bitsandbytes_version()} quantizes to 4 and 8 bits", values)
