"""Trials to export: made up for what is only written, trained for what must be repeated."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lora_lab.analysis.audit import audit
from lora_lab.analysis.verdict import decide
from lora_lab.exporters.trial import read_trial
from lora_lab.results.folder import RunFolder
from lora_lab.results.results import Results
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult
from lora_lab.study.spec import StudySpec
from lora_lab.study.targets import resolve_targets, trainable_parameters
from lora_lab.training.base.loading import architecture

if TYPE_CHECKING:
    from pathlib import Path

    from lora_lab.exporters.trial import DataForm, ExportedTrial

WORDS = ["red", "blue", "green", "cat", "dog", "bird", "runs", "sleeps", "over", "under", "the", "house", "river"]


def write_data(folder: Path, train: int = 24, evaluation: int = 8) -> None:
    """`train.jsonl` and `valid.jsonl`: prompts and completions of made-up words, always the same."""
    for name, count, start in (("train", train, 0), ("valid", evaluation, 1000)):
        rows = [
            {"prompt": _words(start + i, 6) + "\n", "completion": _words(start + i + 500, 4 + i % 3)}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _words(seed: int, count: int) -> str:
    return " ".join(WORDS[(seed * 7 + place * (seed % 5 + 1)) % len(WORDS)] for place in range(count))


TRAINING = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 3,
    "num_train_epochs": 5,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "weight_decay": 0.01,
    "seed": 7,
}
LORA = {"r": 8, "lora_alpha": 16.0, "target_modules": ["q_proj", "v_proj", "down_proj"], "layers": [2, 3]}


def study(**sections: Any) -> dict[str, Any]:
    """A study whose whole epoch is one optimizer step; values of `sections` take the place of its own."""
    base: dict[str, Any] = {
        "study_name": "handover",
        "model": {"model_name_or_path": "builtin/tiny-llama"},
        "data": {"train": "train.jsonl", "eval": "valid.jsonl", "max_length": 64},
        "training": TRAINING,
        "lora": LORA,
        "sweep": {"sampler": "grid", "pruner": "none", "parameters": {"r": {"values": [8]}}},
    }
    for section, values in sections.items():
        base[section] = {**base.get(section, {}), **values} if isinstance(values, dict) else values
    return base


def exported(folder: Path, data_form: DataForm | None = None, **sections: Any) -> ExportedTrial:
    """A trial that was never trained, as exporters get it; `folder` has its data, and `runs/` will be there."""
    content = study(**sections)
    data = {
        key: str(folder / value) if key in ("train", "eval") and isinstance(value, str) else value
        for key, value in content["data"].items()
    }
    spec = StudySpec.model_validate(content | {"data": data})
    config = spec.trial_config({})
    linears = architecture(config.model)
    resolve_targets(linears, config.lora)
    width = 8 if config.model.dtype == "float64" else 4
    metrics = {
        "eval_loss": 5.25,
        "trainable_params": float(trainable_parameters(linears, config.lora)),
        "train_seconds": 1.0,
        "peak_memory_bytes": 1e7,
        "base_bytes": float(width * linears.total_parameters),
    }
    trial = TrialResult(
        number=3,
        state="complete",
        params={},
        config=config,
        engine=engine_for(config),
        metrics=metrics,
        curve={1: 5.25},
    )
    findings = decide([trial], 5.4, spec.sweep.verdict.margin, losses={}, cost=spec.sweep.verdict.cost)
    results = Results(
        spec=spec,
        trials=[trial],
        findings=findings,
        losses={},
        notes=audit(spec, findings, [trial]),
        base_values={"eval_loss": 5.4},
    )
    run_folder = RunFolder.of("handover", folder / "runs")
    adapter = run_folder.adapter_of(trial)
    adapter.mkdir(parents=True, exist_ok=True)
    (adapter / "adapter_model.safetensors").touch()
    return read_trial(results, run_folder, "recommended", data_form)
