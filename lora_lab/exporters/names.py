"""The targets by name, and the version of each package that its files are made for."""

from __future__ import annotations

from typing import Literal, get_args

Trainer = Literal["peft", "trl", "axolotl", "llama-factory", "unsloth", "ms-swift"]
Server = Literal["vllm", "sglang", "llama-cpp", "ollama", "mlx", "merged"]
TargetName = Trainer | Server

TRAINERS: tuple[Trainer, ...] = get_args(Trainer)
SERVERS: tuple[Server, ...] = get_args(Server)

PACKAGES: dict[TargetName, tuple[str, str]] = {
    "peft": ("peft", "0.21.2 with transformers 5.23.0"),
    "trl": ("TRL", "1.16.0"),
    "axolotl": ("Axolotl", "0.21.0"),
    "llama-factory": ("LLaMA-Factory", "0.9.5"),
    "unsloth": ("Unsloth", "2026.10.9"),
    "ms-swift": ("ms-swift", "4.6.0"),
    "vllm": ("vLLM", "0.33.0"),
    "sglang": ("SGLang", "0.5.23"),
    "llama-cpp": ("llama.cpp", "of November 2026"),
    "ollama": ("Ollama", "of November 2026"),
    "mlx": ("mlx-lm", "0.32.2"),
    "merged": ("transformers", "5.23.0"),
}
"""What people call a target's package, and the version that its defaults, refusals and keys were read in."""


def package(target: TargetName) -> str:
    """Name and version, such as `TRL 1.16.0`."""
    return " ".join(PACKAGES[target])
