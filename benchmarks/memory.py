"""Predicted against measured memory: python benchmarks/memory.py  (about two minutes on one core)

Every configuration trains on the built-in base. Its peak is predicted on tensors without data, then measured by
counting the live bytes of one real step. Published figures of larger bases are predicted beside it, without weights.
The result is printed and written as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch
from transformers import LlamaConfig

from lora_lab.study.data_settings import DatasetRef, DataSettings
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.loading import load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.memory.predictor import MemoryPredictor
from lora_lab.training.packed_engine import PackedEngine

TINY = "builtin/tiny-llama"
CODE = "builtin/stdlib-code"
LLAMA_2 = {
    "7B": LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        vocab_size=32000,
    ),
    "13B": LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=40,
        num_attention_heads=40,
        num_key_value_heads=40,
        vocab_size=32000,
    ),
}
LENGTHS = (256, 512, 1024, 1304)


def trial(model: ModelSettings, data: DataSettings, lora: dict, training: dict) -> TrialConfig:
    return TrialConfig(model=model, data=data, lora=LoraSettings(**lora), training=TrainingSettings(**training))


def configurations() -> list[TrialConfig]:
    """Ranks, targets, layers, batches, lengths, quantization, dropout, checkpointing, packing and optimizers."""
    chosen = []

    def add(*, model=None, data=None, lora=None, **training) -> None:
        rows = {"train": DatasetRef(path=CODE, max_examples=40), "eval": DatasetRef(path=CODE, max_examples=2)}
        chosen.append(
            trial(
                ModelSettings(model_name_or_path=TINY, **(model or {})),
                DataSettings(**(rows | {"max_length": 64} | (data or {}))),
                {"r": 8} | (lora or {}),
                {"per_device_train_batch_size": 4, "max_steps": 1} | training,
            )
        )

    for r, targets, batch in itertools.product((4, 32, 256), ("attention", "mlp", "all-linear+head"), (1, 8)):
        add(lora={"r": r, "target_modules": targets}, per_device_train_batch_size=batch)
    for kind, double in (("nf4", False), ("nf4", True), ("fp4", False), ("int8", False)):
        for r, length in ((8, 32), (128, 128)):
            add(model={"quantization": kind, "double_quant": double}, lora={"r": r}, data={"max_length": length})
    for layers in ("first_half", "last_half", "every_2nd"):
        add(lora={"layers": layers, "lora_dropout": 0.05})
    for optim in ("adamw_torch", "adamw_8bit", "sgd"):
        add(optim=optim, loraplus_lr_ratio=8.0)
    for kind in ("none", "nf4", "int8"):
        add(model={"quantization": kind}, gradient_checkpointing=True)
    for checkpointing in (False, True):
        add(data={"packing": True, "max_length": 96}, gradient_checkpointing=checkpointing)
    return chosen


def compare(folder: Path) -> list[dict]:
    engines: dict[ModelSettings, PackedEngine] = {}
    rows = []
    for number, config in enumerate(configurations()):
        if config.model not in engines:
            base = load_base(config.model, torch.device("cpu"))
            engines[config.model] = PackedEngine(base, DataCatalog(base.tokenizer, folder / "data"), folder / "trials")
        engine = engines[config.model]
        engine.admit(number, config)
        memory = engine.memory(number)
        engine.discard(number)
        rows.append(
            {
                "configuration": config.model_dump(
                    mode="json", exclude_defaults=True, exclude={"data": {"train", "eval"}}
                ),
                "predicted_bytes": memory.predicted.allocated,
                "measured_bytes": memory.measured.peak,
                "error_percent": memory.metrics["memory_error_percent"],
            }
        )
        print(f"{number:3} {rows[-1]['predicted_bytes']:>12,} {rows[-1]['error_percent']:+.3f}%")
    return rows


def predicted(config: LlamaConfig, *, length: int, quantization: str, double: bool = False) -> tuple[dict, float]:
    """Terms of a trial with r=8 on q and v, one row, on a CUDA device; and the seconds that the prediction took."""
    model = ModelSettings(model_name_or_path="none/none", quantization=quantization, double_quant=double)
    began = time.perf_counter()
    found = MemoryPredictor(config, model, "cuda").predict(
        trial(
            model,
            DataSettings(train="none.jsonl", max_length=length),
            {"r": 8, "target_modules": ("q_proj", "v_proj"), "lora_dropout": 0.05},
            {"per_device_train_batch_size": 1},
        )
    )
    terms = {name: getattr(found, name) for name in found.__slots__}
    return terms | {"total": found.total}, time.perf_counter() - began


def published() -> dict:
    double = {}
    for name, config in LLAMA_2.items():
        once, twice = (predicted(config, length=512, quantization="nf4", double=on)[0] for on in (False, True))
        double[name] = (once["total"] - twice["total"]) / 1e9
    lengths = {}
    for length in LENGTHS:
        (plain, seconds), (nf4, _) = (
            predicted(LLAMA_2["7B"], length=length, quantization=kind) for kind in ("none", "nf4")
        )
        lengths[length] = {
            "bf16": plain,
            "nf4": nf4,
            "saved_gb": (plain["total"] - nf4["total"]) / 1e9,
            "prediction_s": round(seconds, 2),
        }
    return {"double_quantization_saves_gb": double, "llama_2_7b_r8_q_v_one_row": lengths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("memory_prediction.json"))
    output = parser.parse_args().output
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder))
    errors = [abs(row["error_percent"]) for row in rows]
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "configurations": len(rows),
        "largest_error_percent": max(errors),
        "rows": rows,
        "published": published(),
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(rows)} configurations, largest error {max(errors):.3f}%; {output}")


if __name__ == "__main__":
    main()
