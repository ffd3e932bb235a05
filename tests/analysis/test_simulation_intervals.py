"""Nominal 95% intervals cover the truth in 93% to 97% of simulated studies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from analysis.simulated import trial

from lora_lab.analysis.comparison import difference, held_out_value
from lora_lab.analysis.noise import Noise, noise_floor
from lora_lab.analysis.paired import (
    Difference,
    ExampleLosses,
    example_difference,
    seed_difference,
    token_mean,
    with_examples,
)
from lora_lab.analysis.replicates import ReplicateGroup, replicate_groups
from lora_lab.study.measures import EVAL_LOSS

if TYPE_CHECKING:
    from collections.abc import Sequence

SD = 0.006
LOW, HIGH = 0.93, 0.97


def covers(interval: tuple[float, float], truth: float) -> bool:
    return interval[0] <= truth <= interval[1]


def group(template: ReplicateGroup, values: Sequence[float]) -> ReplicateGroup:
    return ReplicateGroup(
        measure=EVAL_LOSS,
        number=template.number,
        config=template.config,
        searched=template.searched,
        search_value=min(values),
        search_mean=float(np.mean(values)),
        runs=dict.fromkeys(range(len(values)), template.runs[0]),
        values=dict(enumerate(values)),
        numbers=template.numbers,
        retrainings=0,
        lost=0,
    )


def templates(count: int) -> list[ReplicateGroup]:
    return replicate_groups([trial(number, 4.0, r=number + 1) for number in range(count)])


def test_paired_over_seeds() -> None:
    rng = np.random.default_rng(0)
    hits, narrower = [], []
    for _ in range(600):
        shared = rng.normal(0, 2 * SD, 4)
        one, other = (4.0 + shared + rng.normal(0, SD, 4) for _ in range(2))
        paired = seed_difference(dict(enumerate(one + 0.01)), dict(enumerate(other)))
        assert paired is not None
        hits.append(covers(paired.interval(), 0.01))
        unpaired = np.hypot(one.std(ddof=1), other.std(ddof=1)) / 2
        narrower.append(paired.se < unpaired)

    assert LOW < np.mean(hits) < HIGH
    assert np.mean(narrower) > 0.9


@pytest.mark.parametrize("shared_sd", [0.0, 3 * SD])
def test_differences_with_the_pooled_noise_floor(shared_sd: float) -> None:
    """Six configurations, three seeds; also where a seed moves all configurations alike."""
    rng = np.random.default_rng(1)
    cells = templates(6)
    means = 4.0 + 0.01 * np.arange(6)
    hits, floor, values, widths = [], [], [], []
    for _ in range(1000):
        drawn = means[:, None] + rng.normal(0, shared_sd, 3) + rng.normal(0, SD, (6, 3))
        groups = [group(cell, row) for cell, row in zip(cells, drawn, strict=True)]
        noise = noise_floor(groups)
        assert noise is not None
        found = difference(groups[5], groups[0], noise)
        hits.append(covers(found.interval(), 0.05))
        widths.append((found.se, noise.sd * np.sqrt(2 / 3)))
        floor.append(covers(noise.interval, np.hypot(SD, shared_sd)))
        values.append(abs(groups[0].mean - 4.0) <= 2.1788 * noise.sd / np.sqrt(3))

    assert LOW < np.mean(hits) < HIGH
    if shared_sd:
        paired, unpaired = np.mean(widths, axis=0)
        assert paired < 0.5 * unpaired
    else:
        assert LOW < np.mean(floor) < HIGH
        assert LOW < np.mean(values) < HIGH


@pytest.mark.parametrize(
    ("seed_sd", "example_sd", "cell_sd"),
    [(SD, 0.0, 0.0), (SD, 0.03, 0.03), (0.001, 0.05, 0.02), (0.001, 0.0, 0.05)],
    ids=["seeds only", "all three", "examples", "interaction"],
)
def test_over_seeds_and_examples(seed_sd: float, example_sd: float, cell_sd: float) -> None:
    """Five seeds and 80 examples of different length, drawn anew in every simulation."""
    rng = np.random.default_rng(2)
    hits = []
    for _ in range(600):
        tokens = rng.integers(20, 120, 80)
        base = rng.normal(3, 0.5, 80) + rng.normal(0, 0.02, (5, 1))
        apart = 0.01 + rng.normal(0, seed_sd, (5, 1)) + rng.normal(0, example_sd, 80) + rng.normal(0, cell_sd, (5, 80))
        ones = [ExampleLosses(row * tokens, tokens) for row in base + apart]
        others = [ExampleLosses(row * tokens, tokens) for row in base]
        over_seeds = seed_difference(*(dict(enumerate(map(token_mean, side))) for side in (ones, others)))
        assert over_seeds is not None
        hits.append(covers(with_examples(over_seeds, ones, others).interval(), 0.01))

    assert LOW < np.mean(hits) < HIGH


def test_over_examples_alone() -> None:
    rng = np.random.default_rng(3)
    hits, widths = [], []
    for _ in range(600):
        tokens = rng.integers(20, 120, 100)
        base = rng.normal(3, 0.5, 100)
        one, other = base + rng.normal(0.01, 0.05, 100), base
        found = example_difference(ExampleLosses(one * tokens, tokens), ExampleLosses(other * tokens, tokens))
        hits.append(covers(found.interval(), 0.01))
        widths.append(found.se / (np.sqrt(2) * base.std() / 10))

    assert LOW < np.mean(hits) < HIGH
    assert np.mean(widths) < 0.2


def test_one_seed_with_a_floor_from_other_configurations() -> None:
    rng = np.random.default_rng(4)
    small, large = templates(2)
    hits = []
    for _ in range(600):
        sd = SD * np.sqrt(rng.chisquare(8) / 8)
        noise = Noise(sd=sd, degrees_of_freedom=8, configurations=4)
        found: Difference = difference(
            group(small, [rng.normal(4.01, SD)]), group(large, rng.normal(4.0, SD, 3).tolist()), noise
        )
        hits.append(covers(found.interval(), 0.01))

    assert LOW < np.mean(hits) < HIGH


def test_the_best_mean_flatters_and_its_value_on_other_seeds_does_not() -> None:
    """Twelve equal configurations, three seeds."""
    rng = np.random.default_rng(5)
    cells = templates(12)
    flattering, honest = [], []
    for _ in range(600):
        groups = [group(cell, row) for cell, row in zip(cells, rng.normal(4.0, SD, (12, 3)), strict=True)]
        flattering.append(min(one.mean for one in groups) - 4.0)
        value = held_out_value(groups)
        assert value is not None
        honest.append(value - 4.0)

    assert np.mean(flattering) < -0.8 * SD
    assert abs(np.mean(honest)) < 0.05 * SD
