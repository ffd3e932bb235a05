"""Servers of adapters: vLLM, SGLang, llama.cpp and Ollama are given the folded adapter, mlx-lm a folder of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import save_file

from lora_lab.exporters.folded import read_low_rank, write_folded
from lora_lab.exporters.trial import BASE

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import ExportedTrial

ADAPTER = "serve"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as `--max-lora-rank`."""


def write_vllm(trial: ExportedTrial, folder: Path) -> str:
    """Write the folded adapter; the launch command."""
    rank = write_folded(trial, folder / ADAPTER).config["r"]
    limit = next(limit for limit in VLLM_RANKS if limit >= rank)
    modules = f"{_name(trial)}={ADAPTER}"
    return f"vllm serve {trial.model}{_revision(trial)} --enable-lora --max-lora-rank {limit} --lora-modules {modules}"


def write_sglang(trial: ExportedTrial, folder: Path) -> str:
    """Write the folded adapter; the launch command."""
    adapter = write_folded(trial, folder / ADAPTER)
    return (
        f"python -m sglang.launch_server --model-path {trial.model}{_revision(trial)} --enable-lora "
        f"--lora-paths {_name(trial)}={ADAPTER} --max-lora-rank {adapter.config['r']} "
        f"--lora-target-modules {' '.join(adapter.endings)}"
    )


def write_llama_cpp(trial: ExportedTrial, folder: Path) -> str:
    """Write the folded adapter; the commands that convert it and the base, and run them."""
    write_folded(trial, folder / ADAPTER)
    return f"{_to_gguf(trial)} && python convert_hf_to_gguf.py {BASE} --outfile base.gguf && {_LLAMA_CLI}"


_LLAMA_CLI = "llama-cli -m base.gguf --lora adapter.gguf"


def write_ollama(trial: ExportedTrial, folder: Path) -> str:
    """Write the folded adapter and the Modelfile; the commands that convert the one and load both."""
    write_folded(trial, folder / ADAPTER)
    (folder / "Modelfile").write_text(f"FROM ./{BASE}\nADAPTER ./adapter.gguf\n", encoding="utf-8")
    return f"{_to_gguf(trial)} && ollama create {_name(trial)} && ollama run {_name(trial)}"


def write_mlx(trial: ExportedTrial, folder: Path) -> str:
    """Write the adapter as mlx-lm keeps its own: A and B transposed, scaled by `scale`; the launch command."""
    adapter = read_low_rank(trial)
    target = folder / ADAPTER
    target.mkdir()
    tensors = {
        f"{name}.lora_{side}": np.ascontiguousarray(matrix.T)
        for name, pair in adapter.pairs.items()
        for side, matrix in zip("ab", pair, strict=True)
    }
    save_file(tensors, target / "adapters.safetensors", metadata={"format": "mlx"})
    parameters = {
        "rank": adapter.config["r"],
        "scale": adapter.scaling,
        "dropout": 0.0,
        "keys": [name for name in trial.linears.shapes if name in adapter.pairs],
    }
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return f"mlx_lm.generate --model {trial.model} --adapter-path {ADAPTER} --prompt 'Hello'"


def _to_gguf(trial: ExportedTrial) -> str:
    """Commands of llama.cpp's own converter, which reads the base's configuration only."""
    revision = trial.config.model.revision
    at = f" --revision {revision}" if revision else ""
    fetch = "" if trial.local_base else f"hf download {trial.model}{at} --local-dir {BASE} && "
    return f"{fetch}python convert_lora_to_gguf.py --base {BASE} --outfile adapter.gguf {ADAPTER}"


def _revision(trial: ExportedTrial) -> str:
    revision = trial.config.model.revision
    return f" --revision {revision}" if revision and not trial.local_base else ""


def _name(trial: ExportedTrial) -> str:
    """What the adapter is called where it is served."""
    return f"{trial.spec.study_name}-{trial.result.number}"
