"""The same prompts answered by a pack of adapters, and by each of them alone: python benchmarks/generation.py

The peer is `PeftModel.generate`, one adapter after another, with its prompts padded on the left in batches of the same
size. Both sides have the same base (loaded once, its tensors shared), adapters and prompts, decode greedily, and write
as many tokens: nothing ends an answer early. They take turns, so that a change of the machine's speed meets both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft import get_peft_model
from transformers import GenerationConfig
from workload import MODEL, RANKS, RandomTokens, make_trials, write_result

from lora_lab.builtin.people import people
from lora_lab.study.settings import LoraSettings
from lora_lab.training.base.adapters import lora_config
from lora_lab.training.base.loading import load_base
from lora_lab.training.generation import Greedy
from lora_lab.training.packed_engine import PackedEngine
from lora_lab.training.reference.model import sharing_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lora_lab.training.base.loading import Base
    from lora_lab.training.packed.slot import Slot

TRIALS = 8
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PAD = 0


def make_prompts(base: Base, count: int) -> list[np.ndarray]:
    """Questions after facts, as the study of facts asks them: of 8 to 16 tokens."""
    texts = [f"Record: {person.name}:" for person in people("facts", count)]
    return [np.asarray(ids, np.int64) for ids in base.tokenizer(texts)["input_ids"]]


def make_slots(engine: PackedEngine) -> list[Slot]:
    """Adapters with the mix of ranks and targets of the other benchmarks; B is random, so that they say something."""
    for number, config in enumerate(make_trials(TRIALS, 1, 2)):
        lora = LoraSettings(r=config.lora.r, target_modules=config.lora.target_modules, init_lora_weights=False)
        engine.admit(number, config.model_copy(update={"lora": lora}))
    return [engine.trial(number) for number in engine.active]


def peer_of(pristine: Any, base: Base, slot: Slot) -> Any:
    """The slot's adapter as PEFT has it."""
    model = get_peft_model(sharing_copy(pristine), lora_config(slot.config.lora, base.linears)).eval()
    layers = {name.removeprefix("base_model.model."): module for name, module in model.named_modules()}
    with torch.no_grad():
        for name, pair in slot.weights().items():
            layers[name].lora_A["default"].weight.copy_(pair.a)
            layers[name].lora_B["default"].weight.copy_(pair.b)
    return model


def answer_alone(model: Any, prompts: Sequence[np.ndarray], rows: int, new: int) -> list[list[int]]:
    """The new tokens of each prompt, by `generate` on batches padded on the left; the longest come first."""
    config = GenerationConfig(do_sample=False, max_new_tokens=new, eos_token_id=None, pad_token_id=PAD)
    answers: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    for start in range(0, len(order), rows):
        chosen = order[start : start + rows]
        length = len(prompts[chosen[0]])
        ids = torch.full((len(chosen), length), PAD)
        mask = torch.zeros_like(ids)
        for row, index in enumerate(chosen):
            own = len(prompts[index])
            ids[row, length - own :] = torch.from_numpy(prompts[index])
            mask[row, length - own :] = 1
        with torch.no_grad():
            whole = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        answers |= dict(zip(chosen, whole[:, length:].tolist(), strict=True))
    return [answers[index] for index in range(len(prompts))]


def measure(
    folder: Path,
    *,
    prompts: int,
    rows: int,
    new: int,
    repeats: int,
    clock: Callable[[], float],
) -> dict[str, Any]:
    """Seconds of both sides for all trials, and in how many answers they agree to the last token."""
    base = load_base(MODEL, torch.device("cpu"))
    base.model.generation_config.eos_token_id = None  # `generate` would take it from there
    pristine = sharing_copy(base.model)  # before adapters are attached
    engine = PackedEngine(base, RandomTokens(8, 16), folder)
    slots, asked = make_slots(engine), make_prompts(base, prompts)
    peers = [peer_of(pristine, base, slot) for slot in slots]
    greedy = Greedy(new, frozenset())
    times: dict[str, list[float]] = {"packed": [], "alone": []}
    for repeat in range(repeats + 1):  # the first one warms up
        started = clock()
        packed = engine._answers(engine.active, asked, greedy, rows)
        between = clock()
        alone = [answer_alone(peer, asked, rows, new) for peer in peers]
        ended = clock()
        if repeat:
            times["packed"].append(between - started)
            times["alone"].append(ended - between)
    pairs = [
        (one.tolist(), other)
        for ours, theirs in zip(packed, alone, strict=True)
        for one, other in zip(ours, theirs, strict=True)
    ]
    speedup = statistics.median(b / a for a, b in zip(times["packed"], times["alone"], strict=True))
    same = sum(one == other for one, other in pairs) / len(pairs)
    print(f"{rows} rows a trial: {TRIALS} trials packed {speedup:.2f}x as fast as alone; {same:.1%} of answers equal")
    return {
        "rows_per_trial": rows,
        "seconds": {name: [round(value, 4) for value in found] for name, found in times.items()},
        "speedup": round(speedup, 3),
        "equal_answers": round(same, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="as in equal_work.py")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    cells = []
    for rows in options.rows:
        with tempfile.TemporaryDirectory() as scratch:
            cells.append(
                measure(
                    Path(scratch),
                    prompts=options.prompts,
                    rows=rows,
                    new=options.new_tokens,
                    repeats=options.repeats,
                    clock=CLOCKS[options.clock],
                )
            )
    what = f"seconds in which {TRIALS} adapters answer {options.prompts} prompts: as one pack, and one after another"
    result = {
        "clock": options.clock,
        "ranks": RANKS,
        "prompts": options.prompts,
        "new_tokens": options.new_tokens,
        "repeats": options.repeats,
        "cells": cells,
    }
    write_result("generation", what, result, options.output)


if __name__ == "__main__":
    main()
