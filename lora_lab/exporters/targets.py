"""What writes each target's files. A new target is a module, a line here, a name in `names`, and cells in `table`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_lab.exporters import axolotl, llama_factory, merged, ms_swift, peft_script, serving, trl, unsloth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from lora_lab.exporters.names import TargetName
    from lora_lab.exporters.trial import ExportedTrial

WRITERS: Mapping[TargetName, Callable[[ExportedTrial, Path], str]] = {
    "peft": peft_script.write,
    "trl": trl.write,
    "axolotl": axolotl.write,
    "llama-factory": llama_factory.write,
    "unsloth": unsloth.write,
    "ms-swift": ms_swift.write,
    "vllm": serving.write_vllm,
    "sglang": serving.write_sglang,
    "llama-cpp": serving.write_llama_cpp,
    "ollama": serving.write_ollama,
    "mlx": serving.write_mlx,
    "merged": merged.write,
}
"""Each writes a trial into an export folder, which exists, and returns the command that is run there."""
