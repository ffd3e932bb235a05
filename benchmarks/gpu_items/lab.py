"""A tiny Llama with grouped heads: trials in a pack and with `Trainer` + `peft`, and how far the two differ."""

from __future__ import annotations

import itertools
import json
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import prepare_model_for_kbit_training
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from gpu_items.alone import train_alone
from gpu_items.device import device, on_gpu, patched
from lora_lab.study.data_settings import DataSettings
from lora_lab.study.engines import engine_for
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.training.base.loading import load_base
from lora_lab.training.datasets import DataCatalog
from lora_lab.training.packed.blocks import SETTING
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference_engine import ReferenceEngine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gpu_items.cells import Context

VOCABULARY, ROWS = 256, 24
COUNTER = itertools.count()
ENDINGS = ("Finished", "Diverged", "Failed", "OutOfMemory")
Run = dict[str, Any]
"""Of one trial: losses and norms by step, adapter, eval_loss, how it ended, and the adapter's folder."""


def write_base(folder: Path, width: int) -> None:
    """Random weights in float64, and a tokenizer of words."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=128,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).double().save_pretrained(folder)
    special = {"eos_token": "<eos>", "unk_token": "<unk>"}
    words = {f"w{index}": index for index in range(VOCABULARY - 2)}
    words |= {text: VOCABULARY - 2 + index for index, text in enumerate(special.values())}
    tokenizer = Tokenizer(models.WordLevel(words, special["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def write_texts(folder: Path) -> None:
    numbers = np.random.default_rng(0)
    for name, rows in (("train", ROWS), ("validation", 10)):
        lines = []
        for _ in range(rows):
            chosen = numbers.integers(0, VOCABULARY - 2, size=int(numbers.integers(6, 30)))
            lines.append(json.dumps({"text": " ".join(f"w{word}" for word in chosen)}))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


class Lab:
    """Trials on one small base of one dtype and quantization."""

    def __init__(self, context: Context, dtype: str, **quantization: Any) -> None:
        self._toy, self._dtype = context.toy, dtype
        self.folder = context.scratch / f"lab-{os.getpid()}"
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            write_base(self.folder / "base", 64 if context.toy else 256)
            write_texts(self.folder)
        self._model = ModelSettings(model_name_or_path=str(self.folder / "base"), dtype=dtype, **quantization)
        texts = {"train": str(self.folder / "train.jsonl"), "eval": str(self.folder / "validation.jsonl")}
        self._data = DataSettings(**texts, max_length=32)
        self.steps = 5 if context.toy else 20

    def trial(self, lora: dict | None = None, training: dict | None = None, data: dict | None = None) -> TrialConfig:
        defaults = {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "max_steps": self.steps}
        return TrialConfig(
            model=self._model,
            data=self._data.model_copy(update=data or {}),
            training=TrainingSettings(**(defaults | (training or {}))),
            lora=LoraSettings(**({"r": 8} | (lora or {}))),
        )

    def trials(self, which: Sequence[tuple[dict, dict]]) -> list[TrialConfig]:
        """In miniature, the first three."""
        return [self.trial(lora, training) for lora, training in (which[:3] if self._toy else which)]

    def engine(self, folder: Path | None = None) -> PackedEngine:
        engine = PackedEngine(*self._for_an_engine(folder))
        engine._probe.predict = lambda *_: None  # seconds of one core each; `prediction` does it for large bases
        return engine

    def reference_engine(self) -> ReferenceEngine:
        return ReferenceEngine(*self._for_an_engine(None))

    def _for_an_engine(self, folder: Path | None) -> tuple[Any, DataCatalog, Path]:
        base = load_base(self._model, device())
        data = DataCatalog(base.tokenizer, self.folder / "cache")
        return base, data, folder or self.folder / f"{self._dtype}-{next(COUNTER)}"

    def packed(
        self, configs: Sequence[TrialConfig], engine: PackedEngine | None = None, *, merged: bool | None = None
    ) -> list[Run]:
        """Train these trials in one pack, in blocks or slot after slot; None is what the product chooses here."""
        os.environ.pop(SETTING, None)
        if merged is not None:
            os.environ[SETTING] = "merged" if merged else "single"
        engine = engine or self.engine()
        for number, config in enumerate(configs):
            engine.admit(number, config)
        return self.drain(engine, len(configs))

    def engine_of(self, config: TrialConfig) -> str:
        """The name of the engine that a trial gets in a study on this device."""
        return engine_for(config, is_cuda=on_gpu()).name

    def trained(self, configs: Sequence[TrialConfig]) -> list[Run]:
        """Train these trials in one pack, or one after another on the reference engine where that is their engine."""
        if self.engine_of(configs[0]) == "packed":
            return self.packed(configs)
        engine = self.reference_engine()
        runs = []
        for number, config in enumerate(configs):
            engine.admit(number, config)
            runs += self.drain(engine, number + 1)[number:]
        return runs

    def drain(self, engine: PackedEngine | ReferenceEngine, count: int) -> list[Run]:
        """Go on until no trial is left."""
        runs = [Run(losses={}, norms={}, adapter={}, eval_loss=None, end=None) for _ in range(count)]
        while engine.active:
            for event in engine.step():
                run, kind = runs[event.number], type(event).__name__
                if kind == "Logged":
                    run["losses"][event.step], run["norms"][event.step] = event.loss, event.grad_norm
                elif kind == "Finished":
                    run["folder"] = engine.trial_folder(event.number) / "adapter"
                    run["adapter"] = load_file(run["folder"] / "adapter_model.safetensors")
                    run["eval_loss"] = event.metrics["eval_loss"]
                if kind in ENDINGS:
                    run["end"] = kind if kind == "Finished" else f"{kind}: {event.reason}"[:120]
        for run in runs:
            for name in ("losses", "norms"):
                run[name] = [run[name][step] for step in sorted(run[name])]
        return runs

    def plain(self) -> Any:
        """The base, as people load it for `peft`."""
        dtype, place = getattr(torch, self._dtype), str(self.folder / "base")
        kind = self._model.quantization
        if kind == "none":
            return AutoModelForCausalLM.from_pretrained(place, dtype=dtype).to(device())
        if kind == "int8":
            bits = BitsAndBytesConfig(load_in_8bit=True)
        else:
            bits = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=kind,
                bnb_4bit_use_double_quant=self._model.double_quant,
                bnb_4bit_compute_dtype=dtype,
            )
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype, quantization_config=bits, device_map={"": device()}
        )
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

    def alone(self, configs: Sequence[TrialConfig], engine: PackedEngine, more_padding: int = 0) -> list[Run]:
        """Train these trials with `Trainer` + `peft`, on the rows that the engine has for them."""
        linears, folder = engine._base.linears, self.folder / "trainer"
        return [
            train_alone(self.plain(), one, linears, engine._data.splits(one.data).train, folder, more_padding)
            for one in configs
        ]


def differences(left: Sequence[Run], right: Sequence[Run]) -> dict[str, Any]:
    """The largest differences of two lists of runs."""
    pairs = list(zip(left, right, strict=True))
    result: dict[str, Any] = {"trials": len(left), "steps": min(len(run["losses"]) for run in left)}
    counts = [(len(a["losses"]), len(b["losses"])) for a, b in pairs]
    if unequal := [count for count in counts if count[0] != count[1]]:
        result["unequal numbers of steps"] = unequal
    losses = [[abs(x - y) for x, y in _beside(a, b, "losses")] for a, b in pairs]
    result["loss"] = max(max(one) for one in losses)
    result["loss_first_step"] = max(one[0] for one in losses)
    result["loss_by_trial"] = [max(one) for one in losses]
    norms = [[x / y - 1 for x, y in _beside(a, b, "norms") if y] for a, b in pairs]
    if norms := [one for one in norms if one]:
        result["norm_ratio_first_step"] = [one[0] for one in norms]
        result["norm_ratio"] = max(max(map(abs, one)) for one in norms)
    drifts = [_drift(a["adapter"], b["adapter"]) for a, b in pairs if a["adapter"] and b["adapter"]]
    result |= {"adapter": max(drifts)} if drifts else {}
    both = [(a["eval_loss"], b["eval_loss"]) for a, b in pairs]
    evaluations = [abs(x - y) for x, y in both if x is not None and y is not None]
    result |= {"eval": max(evaluations)} if evaluations else {}
    ends = [run["end"] for run in left if run["end"] != "Finished"]
    return result | ({"ends": ends} if ends else {})


def _beside(left: Run, right: Run, name: str) -> Iterator[tuple[float, float]]:
    return zip(left[name], right[name], strict=False)


def _drift(left: dict[str, Any], right: dict[str, Any]) -> float:
    """The largest difference of a tensor, by its norm."""
    if left.keys() != right.keys():
        return math.nan
    pairs = ((left[name].double(), right[name].double()) for name in left)
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in pairs)


def in_one_precision(dtype: str, run: Callable[[], dict]) -> dict:
    """In float64, with norms that stay in it.

    transformers' own go through float32, where a difference of 1e-16 can flip a rounding and become one of 1e-8.
    """

    def forward(norm: Any, x: Any) -> Any:
        return norm.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon))

    if dtype != "float64":
        return run()
    with patched(LlamaRMSNorm, "forward", forward):
        return run()
