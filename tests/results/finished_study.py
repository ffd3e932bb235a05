"""A study whose trials have all been told complete, without a training."""

from __future__ import annotations

from pathlib import Path

import yaml

from lora_lab.results.folder import RunFolder
from lora_lab.results.storage import storage_url
from lora_lab.search.store import open_store
from lora_lab.study.file.loading import load_study

BASE_LOSS = 5.0


def finished_study(name: str, seeds: int = 2) -> Path:
    """A study file, and its storage with every trial of a grid told complete; no other file."""
    parameters = {"r": {"values": [4, 8, 16]}, "learning_rate": {"values": [1e-3, 2e-3]}}
    study = {
        "study_name": name,
        "model": {"model_name_or_path": "builtin/tiny-llama"},
        "data": {"train": "builtin/stdlib-code"},
        "sweep": {"sampler": "grid", "pruner": "none", "seeds": seeds, "parameters": parameters},
    }
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump(study))
    spec = load_study(path, [])
    folder = RunFolder.of(name)
    with open_store(spec, storage_url(spec, folder)) as store:
        store.record.keep_base_values({"eval_loss": BASE_LOSS})
        while (asked := store.ask()) is not None:
            r, seed = asked.config.lora.r, asked.config.training.seed
            loss = 4.0 - 0.01 * r + 20 * asked.config.training.learning_rate + 0.002 * seed
            store.report(asked.number, 1, loss)
            store.finish(
                asked.number, {"eval_loss": loss, "trainable_params": 1000.0 * r, "train_seconds": 2.0, "steps": 9.0}
            )
    return path
