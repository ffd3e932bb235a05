"""A tiny study on the built-in base whose adapters are trained, and tasks in files of their own."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from lora_lab.results.folder import RunFolder
from lora_lab.runner.options import RunOptions
from lora_lab.runner.session import run_study
from lora_lab.runner.stopping import StopRequest
from lora_lab.study.file.loading import load_study
from lora_lab.terminal.display import Display, PlainView
from lora_lab.training.memory.room import DEFAULT_LIMIT

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 14
COLORS = ("red", "green", "blue", "def", "return")

SCORING = "!function scoring.sum_of_letters"
LETTERS = """def sum_of_letters(doc, results):
    return {"letters": float(sum(map(ord, results[0])))}
"""
"""A metric that tells every answer from every other one."""


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_tasks(folder: Path) -> None:
    """One task of each kind of request, over data in the same folder."""
    numbers = np.random.default_rng(0)
    folder.mkdir()
    asked = [
        {
            "question": f"The color of {n} is",
            "choices": [COLORS[index] for index in numbers.permutation(len(COLORS))[:3]],
            "answer": int(numbers.integers(3)),
            "text": f"def f{n}(x):\n    return x + {n}\n" * int(numbers.integers(1, 4)),
        }
        for n in range(ROWS)
    ]
    _lines(folder / "asked.jsonl", asked)
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "asked.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "metadata": {"version": 1.0},
    }
    average = {"aggregation": "mean", "higher_is_better": True}
    tasks: dict[str, dict[str, Any]] = {
        "local_choice": {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", **average}, {"metric": "acc_norm", **average}],
        },
        "local_generation": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n", "e "], "max_gen_toks": 9, "do_sample": False},
            "process_results": "!function scoring.sum_of_letters",
            "metric_list": [{"metric": "letters", **average}],
        },
        "local_rolling": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
        },
        "local_sampling": {
            "output_type": "generate_until",
            "doc_to_target": "{{choices[answer]}}",
            "generation_kwargs": {"until": ["\n"], "do_sample": True, "temperature": 0.7},
            "metric_list": [{"metric": "exact_match", **average}],
        },
    }
    for name, own in tasks.items():
        text = yaml.safe_dump({"task": name, **common, **own}, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text.replace("'!function scoring.sum_of_letters'", SCORING))
    (folder / "scoring.py").write_text(LETTERS)


def _study(folder: Path) -> dict[str, Any]:
    return {
        "study_name": "colors",
        "model": {"model_name_or_path": "builtin/tiny-llama"},
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl"), "max_length": 32},
        "training": {"per_device_train_batch_size": 4, "num_train_epochs": 4, "learning_rate": 3.0e-3},
        "sweep": {
            "sampler": "grid",
            "pruner": "none",
            "pack_size": 2,
            "parameters": {"r": {"values": [2, 8]}, "use_dora": {"values": [False, True]}},
            "verdict": {"absolute_margin": 10.0},
        },
    }


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with `colors.yaml`, its run folder, and `tasks/`."""
    folder = tmp_path_factory.mktemp("harness")
    rows = [{"text": f"The color of {n} is {COLORS[n % 3]}\n"} for n in range(24)]
    _lines(folder / "train.jsonl", rows)
    _lines(folder / "eval.jsonl", rows[:6])
    _write_tasks(folder / "tasks")
    (folder / "colors.yaml").write_text(yaml.safe_dump(_study(folder), sort_keys=False))
    here = os.getcwd()  # noqa: PTH109
    os.chdir(folder)
    try:
        spec = load_study(folder / "colors.yaml")
        run_study(
            spec,
            RunFolder.of(spec.study_name),
            "python -m lora_lab.sweep colors.yaml",
            RunOptions(memory_limit=DEFAULT_LIMIT, tracking_uri="http://127.0.0.1:9"),
            display=Display(PlainView(io.StringIO())),
            stop=StopRequest(),
        )
    finally:
        os.chdir(here)
    return folder
