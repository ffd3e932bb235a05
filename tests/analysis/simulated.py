"""A study made up for tests: 32 trials whose losses follow a plausible surface, and no training."""

from __future__ import annotations

import functools
import math
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora_lab.analysis.replicates import ReplicateGroup, replicate_groups
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult, TrialState
from lora_lab.study.spec import StudySpec

if TYPE_CHECKING:
    import numpy as np

BASE_LOSS = 5.07
BASE_FORGETTING = 3.37
STEPS_PER_EPOCH = 64
EVAL_STEPS = 16
WIDTHS = {"attention": 2304, "mlp": 8448, "all-linear": 10752}


def study(**sweep: Any) -> StudySpec:
    """The demo study; `sweep` replaces keys of its sweep."""
    parameters = {
        "r": {"values": [4, 8, 16, 32, 64, 128, 256]},
        "alpha_ratio": {"values": [0.5, 1, 2]},
        "target_modules": {"values": ["attention", "mlp", "all-linear"]},
        "layers": {"values": ["all", "first_half", "last_half"]},
        "num_train_epochs": {"values": [1, 2, 3]},
        "learning_rate": {"min": 1e-4, "max": 1e-2, "log": True},
    }
    return StudySpec.model_validate(
        {
            "study_name": "rank_alpha",
            "question": "How do rank and alpha trade off against loss, memory and trainable parameters?",
            "model": {"model_name_or_path": "builtin/tiny-llama"},
            "data": {"train": "builtin/stdlib-code", "forgetting": "builtin/stdlib-prose", "max_length": 128},
            "training": {"learning_rate": 2e-3, "num_train_epochs": 3, "eval_steps": EVAL_STEPS},
            "sweep": {"n_trials": 32, "parameters": parameters, "confirm": {"top": 3, "seeds": 3}, **sweep},
        }
    )


def trial(number: int, eval_loss: float | None = None, **changes: Any) -> TrialResult:
    """One trial; keyword arguments are parameter values, or `state`, `reason`, `metrics`, `replicate`, ..."""
    fields = {
        name: changes.pop(name)
        for name in ("state", "reason", "metrics", "curve", "replicate", "confirms", "source", "seed")
        if name in changes
    }
    spec = study()
    config = spec.trial_config({"seed": fields.pop("seed", fields.get("replicate", 0)), **changes})
    metrics = {} if eval_loss is None else {"eval_loss": eval_loss, "train_seconds": 10.0 + number}
    if eval_loss is not None:
        metrics["trainable_params"] = float(config.lora.r * 1000)
    metrics |= fields.pop("metrics", {})
    state: TrialState = fields.pop("state", "complete")
    engine = engine_for(config)
    return TrialResult(
        number=number, state=state, params=changes, config=config, engine=engine, metrics=metrics, **fields
    )


def _surface(params: dict[str, Any], epoch: float, noise: random.Random) -> float:
    width = WIDTHS[params["target_modules"]] * (1.0 if params["layers"] == "all" else 0.5)
    capacity = math.log2(params["r"] * width)
    rate = math.log10(params["learning_rate"] * math.sqrt(params["alpha_ratio"]))
    ideal = -2.6 - 0.1 * math.log2(params["r"] / 16)
    reach = 0.62 + 0.052 * (capacity - 15) - 0.42 * (rate - ideal) ** 2
    overfit = 0.02 * max(0.0, epoch - 2) * math.log2(params["r"] / 32) if params["r"] > 32 else 0.0
    return BASE_LOSS - 1.22 * reach * (1 - math.exp(-2.2 * epoch)) + overfit + noise.gauss(0, 0.006)


def _state(number: int, loss: float, rate: float, noise: random.Random) -> tuple[TrialState, str, float]:
    if rate > 7e-3 and noise.random() < 0.7:
        return "diverged", "gradient is not finite at step 23", 0.35
    if number == 21:
        return "out_of_memory", "needs 1.9 GiB alone, and 1.5 GiB are free", 0.0
    if number == 27:
        return "failed", "ValueError: <script>alert('reason')</script> is not a label", 0.1
    if loss > 4.2 and number > 5:
        return "pruned", "rung 1: 4.31 is not among the best third (4.05)", 0.34
    return "complete", "", 1.0


def results(count: int = 32, seed: int = 3) -> list[TrialResult]:
    """Trials in every state, and three retrainings each of the three best."""
    noise = random.Random(seed)
    spec = study()
    rows = [_trial(spec, number, _params(noise), noise) for number in range(count)]
    best = sorted((row for row in rows if row.has_value), key=lambda row: row.metrics["eval_loss"])[:3]
    for finalist in best:
        for replicate in (1, 2, 3):
            rows.append(_trial(spec, len(rows), dict(finalist.params), noise, finalist.number, replicate))
    return rows


def _params(noise: random.Random) -> dict[str, Any]:
    r = noise.choice([4, 8, 16, 32, 64, 128, 256])
    return {
        "r": r,
        "alpha_ratio": noise.choice([0.5, 1.0, 2.0]),
        "target_modules": noise.choice(list(WIDTHS)),
        "layers": noise.choice(["all", "all", "first_half", "last_half"]),
        "num_train_epochs": noise.choice([1, 2, 3]),
        "learning_rate": 10 ** (-2.65 - 0.12 * math.log2(r / 16) + noise.gauss(0, 0.35)),
    }


def _trial(
    spec: StudySpec,
    number: int,
    params: dict[str, Any],
    noise: random.Random,
    confirms: int | None = None,
    replicate: int = 0,
) -> TrialResult:
    epochs = params["num_train_epochs"]
    loss = _surface(params, epochs, noise)
    state, reason, share = ("complete", "", 1.0) if replicate else _state(number, loss, params["learning_rate"], noise)
    last = int(epochs * STEPS_PER_EPOCH * share) // EVAL_STEPS
    curve = {n: _surface(params, n * EVAL_STEPS / STEPS_PER_EPOCH, noise) for n in range(1, last + 1)}
    if state == "complete":
        curve[last] = loss
    weights = params["r"] * WIDTHS[params["target_modules"]] * (1.0 if params["layers"] == "all" else 0.5)
    metrics = {
        "eval_loss": loss,
        "forgetting": 0.3 + 0.35 * (BASE_LOSS - loss) ** 2 + 0.05 * math.log2(params["r"]) + noise.gauss(0, 0.03),
        "trainable_params": float(weights),
        "trainable_percent": 100 * weights / 1.77e6,
        "peak_memory_bytes": 180e6 + 16.0 * weights + 30e6 * WIDTHS[params["target_modules"]] / 10752,
        "adapter_bytes": 4.0 * weights,
        "optimizer_bytes": 8.0 * weights,
        "train_seconds": epochs * STEPS_PER_EPOCH * (0.085 + weights * 3e-8),
        "tokens_per_second": 5200.0,
        "epochs": float(epochs),
        "steps": float(epochs * STEPS_PER_EPOCH),
    }
    config = spec.trial_config({**params, "seed": replicate})
    return TrialResult(
        number=number,
        state=state,
        params=params,
        config=config,
        engine=engine_for(config),
        metrics=metrics if state == "complete" else {},
        curve=curve,
        reason=reason,
        replicate=replicate,
        confirms=confirms,
    )


@functools.cache
def _templates(configurations: int, seeds: int) -> tuple[ReplicateGroup, ...]:
    trials = [trial(100 * n + seed, 4.0, r=n + 1, seed=seed) for n in range(configurations) for seed in range(seeds)]
    return tuple(replicate_groups(trials))


def with_losses(losses: np.ndarray) -> list[ReplicateGroup]:
    """Configurations with [configurations, seeds] losses, as their trainings would give them."""
    return [
        replace(template, values=dict(enumerate(map(float, row))))
        for template, row in zip(_templates(*losses.shape), losses, strict=True)
    ]
