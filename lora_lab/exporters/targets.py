"""The targets by name, what their files are made for, and what writes them.

A new target is a module, its name and its line here, and its cells in `table`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

Trainer = Literal["peft", "trl", "axolotl", "llama-factory", "unsloth", "ms-swift"]
Server = Literal["vllm", "sglang", "llama-cpp", "ollama", "mlx", "merged"]
TargetName = Trainer | Server

TRAINERS: tuple[Trainer, ...] = get_args(Trainer)
SERVERS: tuple[Server, ...] = get_args(Server)
STANDALONE: frozenset[TargetName] = frozenset({"merged"})
"""Targets whose files hold the base too."""


@dataclass(frozen=True, slots=True)
class Target:
    """What hands a trial to one other tool."""

    package: str
    """What people call it."""
    version: str
    """In which its defaults, refusals and keys were read."""
    function: str
    """What writes its files, as `module.function` of this package; imported when the target is asked for."""

    @property
    def writer(self) -> Callable[[ExportedTrial, Path], str]:
        """Writes a trial into an export folder, which exists, and returns the command that is run there."""
        module, _, name = self.function.partition(".")
        found: Callable[[ExportedTrial, Path], str] = getattr(import_module(f"lora_lab.exporters.{module}"), name)
        return found


TARGETS: dict[TargetName, Target] = {
    "peft": Target("peft", "0.21.2 with transformers 5.23.0", "peft_script.write"),
    "trl": Target("TRL", "1.16.0", "trl.write"),
    "axolotl": Target("Axolotl", "0.21.0", "axolotl.write"),
    "llama-factory": Target("LLaMA-Factory", "0.9.5", "llama_factory.write"),
    "unsloth": Target("Unsloth", "2026.10.9", "unsloth.write"),
    "ms-swift": Target("ms-swift", "4.6.0", "ms_swift.write"),
    "vllm": Target("vLLM", "0.33.0", "serving.write_vllm"),
    "sglang": Target("SGLang", "0.5.23", "serving.write_sglang"),
    "llama-cpp": Target("llama.cpp", "of November 2026", "serving.write_llama_cpp"),
    "ollama": Target("Ollama", "of November 2026", "serving.write_ollama"),
    "mlx": Target("mlx-lm", "0.32.2", "serving.write_mlx"),
    "merged": Target("transformers", "5.23.0", "merged.write"),
}


def package(target: TargetName) -> str:
    """Name and version, such as `TRL 1.16.0`."""
    return f"{TARGETS[target].package} {TARGETS[target].version}"
