from __future__ import annotations

import math

import numpy as np
import pytest
from analysis.simulated import trial, with_losses

from lora_lab.analysis.noise import Noise, Spread, noise_floor
from lora_lab.analysis.replicates import ReplicateGroup, replicate_groups


def groups_of(values: list[dict[int, float]]) -> list[ReplicateGroup]:
    """Configurations by their values at every seed."""
    return replicate_groups(
        [trial(100 * n + seed, one, r=n + 1, seed=seed) for n, row in enumerate(values) for seed, one in row.items()]
    )


def test_the_noise_floor_pools_variances_and_takes_out_what_seeds_share() -> None:
    seed_effect = {0: 0.00, 1: 0.10, 2: -0.10}
    rest = {4: [0.01, -0.01, 0.0], 8: [-0.01, 0.0, 0.01], 16: [0.0, 0.01, -0.01]}
    trials = [
        trial(10 * r + seed, 4.0 + seed_effect[seed] + rest[r][seed], r=r, seed=seed) for r in rest for seed in range(3)
    ]

    noise = noise_floor(replicate_groups(trials))

    assert noise is not None
    variances = [np.var([seed_effect[s] + rest[r][s] for s in range(3)], ddof=1) for r in rest]
    assert noise.sd == pytest.approx(math.sqrt(np.mean(variances)))
    assert (noise.degrees_of_freedom, noise.configurations) == (6, 3)
    assert noise.paired_sd == pytest.approx(math.sqrt(0.0006 / 4))
    assert noise.paired_degrees_of_freedom == 4
    low, high = noise.interval
    assert low == pytest.approx(noise.sd * math.sqrt(6 / 14.4494), rel=1e-4)
    assert high == pytest.approx(noise.sd * math.sqrt(6 / 1.23734), rel=1e-4)


def test_trainings_that_were_read_off_others_are_no_noise_of_their_own() -> None:
    trained = [trial(0, 4.0, r=8, seed=0), trial(1, 4.2, r=8, seed=1)]
    read_off = [trial(2 + s, loss, r=16, seed=s, state="shared", source=s) for s, loss in enumerate([4.0, 4.2])]

    noise = noise_floor(replicate_groups(trained + read_off))

    assert noise is not None
    assert (noise.configurations, noise.degrees_of_freedom) == (1, 1)
    assert noise.paired_sd is None


def test_the_residual_allows_missing_seeds() -> None:
    additive = groups_of([{0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5}, {1: 2.2, 2: 3.2}])

    noise = noise_floor(additive)

    assert noise is not None
    assert noise.paired_degrees_of_freedom == 2
    assert noise.paired_sd == pytest.approx(0.0, abs=1e-12)
    alone = noise_floor(groups_of([{0: 1.0, 1: 2.0}]))
    assert alone is not None
    assert (alone.paired_sd, alone.paired_degrees_of_freedom) == (None, 0)
    assert noise_floor(groups_of([{0: 1.0}, {1: 2.0}])) is None


def drawn(spreads: list[float], seed: int = 0, seeds: int = 3) -> list[ReplicateGroup]:
    rng = np.random.default_rng(seed)
    losses = 4 + rng.normal(0, 0.02, seeds) + rng.normal(0, 1, (len(spreads), seeds)) * np.array(spreads)[:, None]
    return with_losses(losses)


def test_a_configuration_near_divergence_is_named_and_kept_out() -> None:
    """As on the study of facts: seeds spread by 0.004 to 0.016 where the rate suits, by 0.1 where it does not."""
    groups = drawn([0.008] * 7 + [0.15], seed=2)

    noise, of_the_others = noise_floor(groups), noise_floor(groups[:-1])

    assert noise is not None
    assert of_the_others is not None
    assert noise.unstable == {groups[-1].number: pytest.approx(groups[-1].spread)}
    assert (noise.sd, noise.configurations) == (of_the_others.sd, 7)
    assert noise.paired_sd == pytest.approx(of_the_others.paired_sd)


def test_configurations_on_seeds_of_their_own_are_screened_too() -> None:
    rng = np.random.default_rng(1)
    rows = [{10 * n + s: float(rng.normal(4, 0.3 if n == 4 else 0.01)) for s in range(4)} for n in range(5)]

    noise = noise_floor(groups_of(rows))

    assert noise is not None
    assert list(noise.unstable) == [groups_of(rows)[4].number]


def test_equal_configurations_are_seldom_called_unstable() -> None:
    named = [bool(noise.unstable) for n in range(150) if (noise := noise_floor(drawn([0.01] * 5, seed=n))) is not None]

    assert np.mean(named) <= 0.03


def test_most_configurations_stay_in_the_floor() -> None:
    noise = noise_floor(drawn([1e-6, 1e-6, 0.01, 0.5, 3.0, 20.0], seeds=6))

    assert noise is not None
    assert noise.configurations >= 3


def test_a_spread_is_drawn_to_the_floor_unless_it_is_apart() -> None:
    noise = Noise(sd=0.1, degrees_of_freedom=14, configurations=8, unstable={5: 0.4})
    own, floor = Spread(0.02, 2), Spread(0.01, 14)
    others = (14 * 0.01 - 2 * 0.02) / 12

    assert noise.shrunk(own, floor, [1, 2]) == Spread(pytest.approx((2 * 0.02 + 6 * others) / 8), 8)
    assert noise.shrunk(own, floor, [1, 5]) == own
    assert noise.shrunk(Spread(0.03, 2), floor, [1]) == Spread(0.03, 2)  # beyond 2.81 times the others, F(2, 12)
    assert noise.shrunk(Spread(0.0, 0), floor, [1]) == floor
    assert noise.shrunk(own, Spread(0.01, 2), [1]) == own  # the floor has nothing else to say
    assert noise.shrunk(Spread(0.29, 2), Spread(0.15, 4), [1]) == Spread(pytest.approx(0.15), 4)
    few = noise.shrunk(own, Spread(0.015, 4), [1])
    assert few == Spread(pytest.approx(0.015), 4)  # all that is known, pooled
