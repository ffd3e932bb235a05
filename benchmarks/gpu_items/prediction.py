"""Memory of the trials of `memory` before they run, on shapes alone; one core, no GPU."""

from __future__ import annotations

import dataclasses
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from gpu_items.bases import llama
from gpu_items.cells import Cell, Context
from gpu_items.memory import cases
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.adapters import initial_weights
from lora_lab.training.base.architecture import linear_map_of_config
from lora_lab.training.memory.predictor import MemoryPredictor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from gpu_items.memory import Case


class Predictions:
    """A predictor for each quantization of one base."""

    def __init__(self, config: PretrainedConfig) -> None:
        self._config = config
        self._made: dict[str, MemoryPredictor] = {}

    def of(self, case: Case) -> dict:
        settings = ModelSettings(model_name_or_path="random/random", quantization=case.quantization, dtype="bfloat16")
        begun = time.perf_counter()
        if case.quantization not in self._made:
            self._made[case.quantization] = MemoryPredictor(self._config, settings, "cuda", dtype=torch.bfloat16)
        made = time.perf_counter() - begun
        training = {"per_device_train_batch_size": case.rows, "max_steps": 10, **case.training}
        config = TrialConfig(
            model=settings,
            data=DataSettings(train="random", max_length=case.length),
            training=TrainingSettings(**training),
            lora=LoraSettings(**case.lora_settings),
        )
        found = self._made[case.quantization].predict(config)
        if found is None:
            return {"predicted": None}
        figures = {"predicted": found.allocated, "own": found.own, "shared": found.shared}
        seconds = {"seconds_to_make": made, "seconds": time.perf_counter() - begun}
        return figures | seconds | {"terms": dataclasses.asdict(found)}


def drawing(config: PretrainedConfig) -> dict[str, Any]:
    """Seconds of one core to draw an adapter's initial weights, as PEFT does."""
    torch.set_num_threads(1)
    linears = linear_map_of_config(config)
    begun = time.perf_counter()
    made = initial_weights(LoraSettings(r=32), linears, 0, torch.bfloat16)
    parameters = sum(pair.a.numel() + pair.b.numel() for pair in made.values())
    return {"seconds": time.perf_counter() - begun, "parameters": parameters}


def predict_item(context: Context, base: str) -> list[Cell]:
    config = llama("toy" if context.toy else base)
    predictions = Predictions(config)
    known = cases(base, toy=context.toy) | cases(base, "nf4", toy=context.toy)
    cells = [Cell(name, partial(predictions.of, case), 5, 150) for name, case in known.items()]
    return [*cells, Cell("weights drawn by one core, r 32", partial(drawing, config), 5, 60)]
