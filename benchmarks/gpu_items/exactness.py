"""Packed training against `Trainer` + `peft`, against itself, and in blocks, on the device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from gpu_items.cells import Cell, Context
from gpu_items.device import attention_by, device
from gpu_items.lab import COUNTER, Lab, differences, in_one_precision
from lora_lab.training.packed import captured_step

if TYPE_CHECKING:
    from collections.abc import Callable

MIXED = [
    ({"r": 8, "alpha_ratio": 2.0}, {"learning_rate": 1e-3}),
    ({"r": 4, "lora_alpha": 16.0, "target_modules": "attention"}, {"learning_rate": 3e-3, "seed": 1}),
    ({"r": 16, "target_modules": "mlp"}, {"per_device_train_batch_size": 8, "weight_decay": 0.1}),
    ({"r": 32, "layers": "last_half"}, {"per_device_train_batch_size": 2, "lr_scheduler_type": "cosine"}),
    ({"r": 2, "use_rslora": True, "lora_alpha": 3.0}, {"seed": 7, "max_grad_norm": 0.1}),
    ({"r": 64, "target_modules": "all-linear+head"}, {"learning_rate": 5e-4}),
    ({"r": 8, "layers": (1, 2)}, {"lr_scheduler_type": "linear", "warmup_steps": 5}),
    ({"r": 1, "target_modules": ("q_proj", "v_proj")}, {"gradient_accumulation_steps": 3, "seed": 3}),
]


SAME_RANK = [
    ({"r": 8, "lora_alpha": alpha}, {"seed": seed, "learning_rate": 1e-3 * (1 + seed)})
    for seed, alpha in enumerate((16.0, 16.0, 4.0, 32.0))
]


RANKS = [({"r": r}, {"seed": seed}) for seed, r in enumerate((4, 8, 4, 8, 2, 8))]


def mixed(one: Lab) -> dict:
    configs, engine = one.trials(MIXED), one.engine()
    alone = one.alone(configs, engine)
    return differences(one.packed(configs, engine), alone)


def mixed_and_noise(one: Lab) -> dict:
    """How far apart are packed and `Trainer`, beside how far `Trainer` is from itself under another padding?"""
    configs, engine = one.trials(MIXED), one.engine()
    alone = one.alone(configs, engine)
    padded = one.alone(configs, engine, more_padding=8)
    packed = one.packed(configs, engine)
    single = [one.packed([config])[0] for config in configs]
    found = differences(packed, alone)
    return {
        "loss": found["loss"],
        "adapter": found.get("adapter"),
        "packed against Trainer": found,
        "Trainer against itself, padded": differences(padded, alone),
        "packed against alone in the packed engine": differences(packed, single),
    }


def against_trainer(which: list, data: dict | None = None) -> Callable[[Lab], dict]:
    def run(one: Lab) -> dict:
        configs, engine = [one.trial(lora, training, data) for lora, training in which], one.engine()
        alone = one.alone(configs, engine)
        return differences(one.packed(configs, engine), alone)

    return run


def in_blocks(which: list) -> Callable[[Lab], dict]:
    def run(one: Lab) -> dict:
        configs = [one.trial(lora, training) for lora, training in which]
        return differences(one.packed(configs, merged=True), one.packed(configs, merged=False))

    return run


def captured(which: list) -> Callable[[Lab], dict]:
    """Steps as CUDA graphs, against the same blocks launched one operation after the other."""

    def run(one: Lab) -> dict:
        configs = [one.trial(lora, training) for lora, training in which]
        os.environ[captured_step.SETTING] = "on"
        try:
            graphs = one.packed(configs, engine := one.engine(), merged=True)
        finally:
            del os.environ[captured_step.SETTING]
        return differences(graphs, one.packed(configs, merged=True)) | {"graphs": engine._steps.captured}

    return run


def dropout(one: Lab) -> dict:
    """Masks are the trial's own: beside any neighbor, in blocks, and in the reference engine.

    Not compared there: the head, where masks are drawn over other rows.
    """
    dropped = one.trial({"lora_dropout": 0.3, "target_modules": "all-linear+head"})
    body = one.trial({"lora_dropout": 0.3})
    neighbors = [
        one.trial(),
        dropped.model_copy(),
        one.trial({"lora_dropout": 0.5}, {"seed": 9, "per_device_train_batch_size": 6}),
    ]
    pair = [dropped, dropped.model_copy()]
    engine = one.reference_engine()
    engine.admit(0, body)
    result = {
        "pack against alone": differences(one.packed([*neighbors, dropped])[-1:], one.packed([dropped])),
        "blocks against loop": differences(one.packed(pair, merged=True), one.packed(pair, merged=False)),
        "against the reference engine": differences(one.packed([*neighbors, body])[-1:], one.drain(engine, 1)),
    }
    return {"loss": max(part["loss"] for part in result.values())} | result


def resumed(optim: str) -> Callable[[Lab], dict]:
    def run(one: Lab) -> dict:
        configs = [
            one.trial({"r": r, "lora_dropout": 0.1}, {"seed": r, "optim": optim, "eval_steps": 3}) for r in (8, 16)
        ]
        whole = one.packed(configs)
        folder = one.folder / f"resume-{next(COUNTER)}"
        first = one.engine(folder)
        for number, config in enumerate(configs):
            first.admit(number, config)
        early: dict = {0: [], 1: []}
        for _ in range(one.steps // 2):
            for event in first.step():
                if type(event).__name__ == "Logged":
                    early[event.number].append(event.loss)
        first.save_checkpoints()
        del first
        again = one.packed(configs, one.engine(folder))
        for number, run in enumerate(again):
            run["losses"], run["norms"] = early[number] + run["losses"], []
        return differences(again, whole)

    return run


def diverging(one: Lab) -> dict:
    """A neighbor that ends (a rate of 1e30; a NaN put into its parameters); the others against their run without it."""
    calm = [one.trial({"r": 8}, {"seed": seed}) for seed in range(3)]
    wild = one.trial({"r": 8}, {"learning_rate": 1e30, "seed": 3})
    control = one.packed(calm)
    engine = one.engine()
    for number, config in enumerate([*calm, one.trial({"r": 8}, {"seed": 3})]):
        engine.admit(number, config)
    with torch.no_grad():
        engine._slots[3].parameters[3] = float("nan")
    found = {
        "rate 1e30": one.packed([*calm, wild], merged=False),
        "rate 1e30, blocks": one.packed([*calm, wild], merged=True),
        "NaN": one.drain(engine, 4),
    }
    result = {name: differences(runs[:3], control) | {"neighbor": runs[3]["end"]} for name, runs in found.items()}
    return {"loss": max(part["loss"] for part in result.values())} | result


def twice(one: Lab) -> dict:
    configs = one.trials(MIXED)
    return differences(one.packed(configs), one.packed(configs))


def sizes(one: Lab) -> dict:
    """The same trials in packs of 1, 2, 4 and 8."""
    configs = one.trials(MIXED)
    whole = one.packed(configs)
    result = {str(count): differences(one.packed(configs[:count]), whole[:count]) for count in (1, 2, 4)}
    return {"loss": max(part["loss"] for part in result.values())} | result


def read_again(one: Lab) -> dict:
    """A written adapter, loaded by PEFT onto the plain base: its loss on the held-out text against the logged one."""

    config, engine = one.trial({"r": 8}), one.engine()
    [run] = one.packed([config], engine)
    model = PeftModel.from_pretrained(one.plain(), str(run["folder"]))
    nll = tokens = 0.0
    held_out = engine._data.splits(config.data).eval
    with torch.no_grad():
        for ids, labels in zip(held_out.input_ids, held_out.labels, strict=True):
            logits = model(input_ids=torch.tensor(ids, device=device())[None]).logits[0, :-1]
            targets = torch.tensor(labels, device=device())[1:]
            nll += float(torch.nn.functional.cross_entropy(logits.double(), targets, reduction="sum"))
            tokens += int((targets != -100).sum())
    return {"loss": abs(nll / tokens - run["eval_loss"]), "eval_loss": run["eval_loss"]}


def with_a_neighbor(one: Lab) -> dict:
    """A trial alone and beside another; on CUDA int8 looks for outliers over all rows together, and is not packed."""
    config, other = one.trial({"r": 8}), one.trial({"r": 8}, {"seed": 5, "learning_rate": 1e-2})
    alone, beside = one.trained([config]), one.trained([other, config])
    return differences(beside[1:], alone) | {"engine": one.engine_of(config)}


def on_its_engine(one: Lab) -> dict:
    """Each trial on the engine that it gets in a study."""
    configs, engine = one.trials(MIXED), one.engine()
    return differences(one.trained(configs), one.alone(configs, engine)) | {"engine": one.engine_of(configs[0])}


SEVERAL = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "weight_decay": 0.1, "seed": 3}
SGD = {"optim": "sgd", "learning_rate": 0.3}
AT_THE_HEAD = {"target_modules": "all-linear+head"}
rows_of_several = against_trainer([({"r": 16, **AT_THE_HEAD}, SEVERAL)], {"packing": True, "max_length": 56})
checkpointing = against_trainer([({"r": 8, **AT_THE_HEAD}, {"gradient_checkpointing": True})])
sgd = against_trainer([({"r": 8}, SGD), ({"r": 32}, {**SGD, "seed": 1})])
adamw_8bit = against_trainer([({"r": 16}, {"optim": "adamw_8bit"}), ({"r": 32}, {"optim": "adamw_8bit", "seed": 2})])

BY_DTYPE: dict[str, dict[str, tuple[Callable[[Lab], dict], float]]] = {
    "float64": {
        "8 mixed": (mixed, 90),
        "blocks: one rank": (in_blocks(SAME_RANK), 45),
        "captured: one rank": (captured(SAME_RANK), 45),
        "blocks: mixed ranks": (in_blocks(RANKS), 45),
        "dropout": (dropout, 60),
        "checkpointing": (checkpointing, 45),
        "rows of several examples": (rows_of_several, 45),
        "sgd": (sgd, 45),
        "resumed": (resumed("adamw_torch"), 45),
        "packs of 1, 2, 4, 8": (sizes, 60),
    },
    "float32": {
        "8 mixed": (mixed, 90),
        "adamw_8bit": (adamw_8bit, 45),
        "diverging neighbor": (diverging, 60),
        "resumed": (resumed("adamw_torch"), 45),
        "adamw_8bit resumed": (resumed("adamw_8bit"), 45),
        "the same twice": (twice, 45),
        "adapter read by PEFT": (read_again, 45),
    },
    "bfloat16": {
        "8 mixed": (mixed_and_noise, 90),
        "sgd": (sgd, 45),
        "blocks: one rank": (in_blocks(SAME_RANK), 45),
        "captured: one rank": (captured(SAME_RANK), 45),
        "the same twice": (twice, 45),
        "resumed": (resumed("adamw_torch"), 45),
        "checkpointing": (checkpointing, 45),
        "rows of several examples": (rows_of_several, 45),
        "adapter read by PEFT": (read_again, 45),
    },
}
"""What is compared, and the seconds that it may take."""


def exact_item(context: Context, dtype: str) -> list[Cell]:
    def cell(name: str, compare: Callable[[Lab], dict], limit_s: float) -> Cell:
        def run() -> dict:
            return in_one_precision(dtype, lambda: compare(Lab(context, dtype)))

        return Cell(f"{dtype}, {name}", lambda: attention_by(run, cudnn=False), 5, limit_s)

    return [cell(name, compare, limit_s) for name, (compare, limit_s) in BY_DTYPE[dtype].items()]


def quantized_item(context: Context) -> list[Cell]:
    def cell(name: str, compare: Callable[[Lab], dict], dtype: str, **quantization: Any) -> Cell:
        def run() -> dict:
            return compare(Lab(context, dtype, **quantization))

        return Cell(name, lambda: attention_by(run, cudnn=False), 5, 75)

    return [
        cell("nf4 float32, 8 mixed", mixed, "float32", quantization="nf4"),
        cell("nf4 double float32, 8 mixed", mixed, "float32", quantization="nf4", double_quant=True),
        cell("nf4 bfloat16, 8 mixed", mixed, "bfloat16", quantization="nf4"),
        cell("int8 float32, a neighbor", with_a_neighbor, "float32", quantization="int8"),
        cell("int8 float32, 8 mixed", on_its_engine, "float32", quantization="int8"),
    ]
