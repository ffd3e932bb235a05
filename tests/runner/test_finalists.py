"""Which trials are trained again with fresh seeds."""

from __future__ import annotations

from runner.scripted import spec

from lora_lab.runner.finalists import finalists, first_fresh_seed
from lora_lab.study.engines import engine_for
from lora_lab.study.results import TrialResult
from lora_lab.study.sweep import Verdict

BASE_LOSS = 5.0
"""With a best loss of 3.0, a margin of 0.1 is 0.2 nats."""
RUNS = {2: (3.15, 20.0), 4: (3.1, 40.0), 8: (3.0, 80.0), 16: (3.05, 160.0), 32: (3.4, 320.0)}
"""By rank: loss and trained parameters."""


def trial(number: int, r: int, seed: int = 0, loss: float | None = None, **more) -> TrialResult:
    config = spec().trial_config({"r": r, "seed": seed})
    metrics = {"eval_loss": RUNS[r][0] if loss is None else loss, "trainable_params": RUNS[r][1]}
    engine = engine_for(config)
    return TrialResult(
        number=number, state="complete", params={"r": r}, config=config, engine=engine, metrics=metrics, **more
    )


def chosen(results, top: int, margin: float = 0.1) -> list[int]:
    found = finalists(
        results, lambda config: f"{config.lora.r}", top=top, base_value=BASE_LOSS, verdict=Verdict(margin=margin)
    )
    return [result.config.lora.r for result in found]


def test_the_best_and_the_cheapest_that_may_tie_take_turns():
    results = [trial(number, r) for number, r in enumerate(RUNS)]
    assert chosen(results, 2) == [8, 2]
    assert chosen(results, 3) == [8, 2, 16]
    assert chosen(results, 9) == [8, 2, 16, 4, 32]
    assert chosen(results, 2, margin=0.0) == [8, 16]
    assert chosen([], 3) == []


def test_what_is_cheap_is_what_the_study_says():
    results = [trial(number, r) for number, r in enumerate(RUNS)]
    for result, memory in zip(results, (500.0, 400.0, 300.0, 100.0, 200.0), strict=True):
        result.metrics["peak_memory_bytes"] = memory
    found = finalists(
        results,
        lambda config: f"{config.lora.r}",
        top=2,
        base_value=BASE_LOSS,
        verdict=Verdict(margin=0.1, cost="peak_memory_bytes"),
    )
    assert [result.config.lora.r for result in found] == [8, 16]


def test_replicates_of_one_configuration_are_one_finalist():
    results = [trial(number, r, seed) for number, (r, seed) in enumerate([(8, 0), (8, 1), (4, 0), (4, 1)])]
    assert chosen(results, 3) == [8, 4]


def test_retrainings_take_seeds_that_the_search_has_not_used():
    assert first_fresh_seed([trial(0, 8, 0), trial(1, 8, 2), trial(2, 8, 7, replicate=1, confirms=0)]) == 3
