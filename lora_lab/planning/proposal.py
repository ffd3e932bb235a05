"""A study for a base and data that somebody has: what is in both, and a search space that suits them and the memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from lora_lab.common.errors import InputError
from lora_lab.common.sizes import bytes_text
from lora_lab.data.examples import Completion, Conversation
from lora_lab.data.locations import find
from lora_lab.data.sources import load_splits
from lora_lab.data.tokens import tokenize
from lora_lab.study.data_settings import DatasetRef, DataSettings
from lora_lab.study.settings import LoraSettings, ModelSettings, TrainingSettings, TrialConfig
from lora_lab.study.targets import resolve_targets
from lora_lab.training.base.loading import load_tokenizer, model_config
from lora_lab.training.memory.predictor import CONTEXT_BYTES, MemoryPredictor
from lora_lab.training.memory.room import DEFAULT_LIMIT, MemoryLimit, at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lora_lab.data.sources import ExampleSplits
    from lora_lab.planning.devices import Device
    from lora_lab.study.targets import LinearMap
    from lora_lab.training.memory.predictor import MemoryPrediction

SAMPLED = 1000
"""Rows that are tokenized: enough for the quantiles of their lengths."""
HELD_OUT, MOST_HELD_OUT = 0.1, 500
"""Of the rows, and rows; more buy little against the noise between seeds."""
FEW_ROWS = 100
"""Below, a fifth is held out."""
RANKS = (4, 8, 16, 32, 64)
MORE_RANKS = (128, 256)
ROWS_FOR_MORE = 5000
"""Training rows from which an adapter may have enough to learn for these."""
PRESETS = ("attention", "mlp", "all-linear")
BATCHES = (16, 8, 4, 2, 1)
FEWEST_STEPS = 25
"""Of an epoch: larger batches would leave fewer."""
TOKENS_PER_STEP = {True: 8192, False: 1024}
"""At most, on a GPU and on a CPU; more only fill them longer."""
EPOCHS = ((200, (1, 2, 3)), (2000, (1, 2)))
"""Steps of an epoch up to which so many epochs are searched; beyond, one."""
WARMUP_STEPS = 20
RATES = ((0.5e9, (3e-4, 1e-2)), (3e9, (1e-4, 3e-3)))
"""Parameters of the base up to which the best rates of adapters lie within (docs/findings.md)."""
RATES_OF_LARGE = (5e-5, 1e-3)
CPU_SHARE = 80.0
"""Percent of a machine's memory that a study may have."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What is in the data."""

    settings: DataSettings
    """How a study reads them."""
    kind: str
    train: int
    eval: int
    median: int
    """Tokens of a row."""
    most: int
    """Tokens that 99 of 100 rows have at most."""
    longest: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A study as it would be begun."""

    trial: TrialConfig
    """What all trials have in common; of what is searched, the costliest."""
    rows: Rows
    linears: LinearMap
    device: Device
    ranks: tuple[int, ...]
    targets: tuple[str, ...]
    epochs: tuple[int, ...]
    learning_rates: tuple[float, float]
    predicted_bytes: int | None
    """Of the costliest trial alone; None where it cannot be predicted."""
    at_once: int | None
    """How many such trials fit side by side."""


def propose(
    model: str,
    data: DataSettings,
    device: Device,
    cache_folder: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Proposal:
    """Look at a base and at data, and put a study together.

    Args:
        model: A folder or a Hub id; only its config and tokenizer are read.
        data: Where its rows are (`data_settings`).
        device: What it is to run on.
        cache_folder: For generated and converted datasets.
        progress: Told what is being looked at.

    Raises:
        InputError: as loading either does; a base that does not fit on the device.
    """
    progress("reading the model's config")
    settings = ModelSettings(model_name_or_path=model)
    config = model_config(settings)
    predictor = _predictor(config, settings, device)
    linears = predictor.linears
    progress("reading the data")
    rows = _look_at(data, settings, linears, cache_folder)
    trial, ranks = _shaped(settings, rows, linears, device)
    progress("predicting memory")
    trial, predicted, limit = _fitting(config, trial, device, predictor)
    while predicted is not None and limit is not None and predicted.allocated > limit and len(ranks) > 1:
        ranks = ranks[:-1]
        trial = trial.changed(lora={"r": ranks[-1]})
        predicted = _predictor(config, trial.model, device).predict(trial)
    if predicted is not None and limit is not None and predicted.allocated > limit:
        raise InputError(
            f"--model: the least that {model} needs on {device.name} is {bytes_text(predicted.allocated)} "
            f"(r {ranks[-1]}, one row at a time, quantization: {trial.model.quantization}), and there is room for "
            f"{bytes_text(limit)}; take a smaller model, shorter rows, or another device"
        )
    steps = rows.train // (trial.training.per_device_train_batch_size * trial.training.gradient_accumulation_steps)
    return Proposal(
        trial=trial,
        rows=rows,
        linears=linears,
        device=device,
        ranks=ranks,
        targets=_targets(linears),
        epochs=next((epochs for most, epochs in EPOCHS if steps <= most), (1,)),
        learning_rates=next((rates for most, rates in RATES if linears.total_parameters <= most), RATES_OF_LARGE),
        predicted_bytes=None if predicted is None else predicted.total,
        at_once=None if predicted is None or limit is None else at_once(predicted, trial.data.max_length, limit),
    )


# The data


def data_settings(data: str, evaluation: str | None, cache_folder: Path) -> DataSettings:
    """Rows to train on and to evaluate.

    Args:
        data: A file, a pattern, a folder, or a Hub id.
        evaluation: The same; by default the data's own validation or test split, or a share of its rows.
        cache_folder: For generated and converted datasets.

    Raises:
        InputError: there is no such dataset.
    """
    train = DatasetRef(path=data)
    if evaluation is not None:
        return DataSettings(train=train, eval=DatasetRef(path=evaluation))
    place = find(train, "train", cache_folder)
    try:
        own = find(train, "eval", cache_folder)
    except InputError:  # it has no such split
        return DataSettings(train=train)
    return DataSettings(train=train) if own.overlaps(place) else DataSettings(train=train, eval=train)


def _look_at(data: DataSettings, model: ModelSettings, linears: LinearMap, cache_folder: Path) -> Rows:
    splits = load_splits(data, cache_folder)
    if isinstance(data.eval, float):
        count = len(splits.train) + len(splits.eval)
        if data.eval != _share(count):
            data = data.model_copy(update={"eval": _share(count)})
            splits = load_splits(data, cache_folder)
    lengths = _lengths(splits, load_tokenizer(model))
    most, longest = round(float(np.quantile(lengths, 0.99))), int(lengths.max())
    max_length = _rounded(longest if longest <= 1.5 * most else most)
    limits = [one for one in (linears.limits.positions, linears.limits.trained_positions) if one is not None]
    return Rows(
        settings=data.model_copy(update={"max_length": min([max_length, *limits])}),
        kind=_kind(splits),
        train=len(splits.train),
        eval=len(splits.eval),
        median=round(float(np.median(lengths))),
        most=most,
        longest=longest,
        notes=splits.notes,
    )


def _share(rows: int) -> float:
    """Of so many rows, for evaluation."""
    share = 2 * HELD_OUT if rows < FEW_ROWS else HELD_OUT
    return share if share * rows <= MOST_HELD_OUT else float(f"{MOST_HELD_OUT / rows:.2g}")


def _lengths(splits: ExampleSplits, tokenizer: object) -> np.ndarray:
    """Tokens of rows [n], none of them cut."""
    first = replace(splits.train, examples=splits.train.examples[:SAMPLED])
    return np.array([len(row) for row in tokenize(first, tokenizer, max_length=2**31).input_ids])


def _rounded(length: int) -> int:
    """Up to a multiple of 64, or of a quarter of its octave."""
    step = max(64, (1 << (length.bit_length() - 1)) // 4)
    return -(-length // step) * step


def _kind(splits: ExampleSplits) -> str:
    match splits.train.examples[0]:
        case Conversation():
            return "conversations"
        case Completion(choices=choices):
            return "questions of multiple choice" if choices else "prompts and completions"
    return "texts"


# The trials


def _shaped(
    model: ModelSettings, rows: Rows, linears: LinearMap, device: Device
) -> tuple[TrialConfig, tuple[int, ...]]:
    """The costliest trial as it would be with enough memory, and all ranks."""
    targets = _targets(linears)
    known = [*RANKS, *(MORE_RANKS if rows.train >= ROWS_FOR_MORE else ())]
    names = resolve_targets(linears, LoraSettings(target_modules=targets[-1]))
    narrowest = min(min(linears.shapes[name].d_in, linears.shapes[name].d_out) for name in names)
    ranks = tuple(r for r in known if r <= narrowest) or (narrowest,)
    tokens = TOKENS_PER_STEP[device.is_cuda]
    batch = next(
        (one for one in BATCHES if one * rows.median <= tokens and rows.train // one >= FEWEST_STEPS), BATCHES[-1]
    )
    steps = max(1, rows.train // batch)
    trial = TrialConfig(
        model=model,
        data=rows.settings,
        training=TrainingSettings(
            per_device_train_batch_size=batch,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=min(WARMUP_STEPS, max(1, steps // 10)),
        ),
        lora=LoraSettings(r=ranks[-1], alpha_ratio=2, target_modules=targets[-1]),
    )
    return trial, ranks


def _targets(linears: LinearMap) -> tuple[str, ...]:
    """The presets that mean different modules of this base."""
    found: dict[tuple[str, ...], str] = {}
    for preset in PRESETS:
        try:
            found.setdefault(resolve_targets(linears, LoraSettings(target_modules=preset)), preset)
        except InputError:  # a base without such modules
            continue
    if not found:
        raise InputError("--model: no preset of target modules fits this base; write a study file with their names")
    return tuple(found.values())


# Memory


def _fitting(
    config: object, trial: TrialConfig, device: Device, predictor: MemoryPredictor
) -> tuple[TrialConfig, MemoryPrediction | None, int | None]:
    """The trial changed as little as lets two like it train side by side, or else one.

    Returns:
        It, what it needs, and the limit.
    """
    is_cuda = device.is_cuda
    limit = (DEFAULT_LIMIT if is_cuda else MemoryLimit(percent=CPU_SHARE)).bytes_of(
        None if device.total_bytes is None else device.total_bytes - CONTEXT_BYTES
    )
    predictors = {trial.model: predictor}
    alone: tuple[TrialConfig, MemoryPrediction] | None = None
    last: tuple[TrialConfig, MemoryPrediction | None] = (trial, None)
    for changed in _thriftier(trial, is_quantized=hasattr(config, "quantization_config")):
        if changed.model not in predictors:
            predictors[changed.model] = _predictor(config, changed.model, device)
        predicted = predictors[changed.model].predict(changed)
        if predicted is None or limit is None:
            return changed, predicted, limit
        fitting = at_once(predicted, changed.data.max_length, limit)
        if fitting >= 2:
            return changed, predicted, limit
        if fitting and alone is None:
            alone = changed, predicted
        last = changed, predicted
    return *(alone or last), limit


def _thriftier(trial: TrialConfig, *, is_quantized: bool) -> Iterator[TrialConfig]:
    """The trial as it is, and then in ways that need less and less memory."""
    rows = trial.training.per_device_train_batch_size
    bases = ("none",) if is_quantized else ("none", "nf4")
    for quantization, batch, checkpointing in product(bases, dict.fromkeys((rows, 1)), (False, True)):
        training = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": rows // batch,
            "gradient_checkpointing": checkpointing,
        }
        yield trial.changed(model={"quantization": quantization}, training=training)


def _predictor(config: object, settings: ModelSettings, device: Device) -> MemoryPredictor:
    return MemoryPredictor(
        config,
        settings,
        "cuda" if device.is_cuda else "cpu",
        fused_attention=device.fused_attention,
    )
