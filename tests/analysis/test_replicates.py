from __future__ import annotations

import math

import numpy as np
import pytest
from analysis.simulated import trial

from lora_lab.analysis.replicates import block_residual, noise_floor, replicate_groups


def test_seeds_of_one_configuration_are_one_group() -> None:
    trials = [trial(number, loss, r=8, seed=number) for number, loss in enumerate([4.02, 4.00, 4.04])]
    trials.append(trial(3, 3.9, r=16))

    small, large = replicate_groups(trials)

    assert (small.number, small.search_value, small.numbers) == (1, 4.00, (0, 1, 2))
    assert small.values == {0: 4.02, 1: 4.00, 2: 4.04}
    assert small.mean == pytest.approx(4.02)
    assert small.spread == pytest.approx(0.02)
    assert (large.number, large.spread, large.retrainings) == (3, None, 0)


def test_retrainings_speak_for_a_configuration_and_its_search_run_does_not() -> None:
    trials = [trial(0, 3.9, r=8)]
    trials += [trial(1 + i, loss, r=8, replicate=i + 1, confirms=0) for i, loss in enumerate([4.0, 4.1])]
    trials.append(trial(3, state="diverged", r=8, replicate=3, confirms=0))

    [group] = replicate_groups(trials)

    assert group.values == {1: 4.0, 2: 4.1}
    assert (group.search_value, group.search_mean, group.mean) == (3.9, 3.9, pytest.approx(4.05))
    assert (group.retrainings, group.lost) == (2, 1)


def test_a_retraining_that_was_read_off_the_search_is_not_fresh() -> None:
    trials = [trial(seed, 3.9 + seed / 100, r=8, seed=seed) for seed in range(2)]
    trials.append(trial(2, 3.91, r=8, replicate=1, confirms=0, state="shared", source=1))
    trials += [trial(3, 4.2, r=8, replicate=2, confirms=0), trial(4, 4.3, r=8, replicate=3, confirms=0)]

    [group] = replicate_groups(trials)

    assert group.values == {2: 4.2, 3: 4.3}
    assert (group.retrainings, group.lost) == (2, 0)


def test_a_seed_that_did_not_end_is_lost_and_one_in_training_is_not() -> None:
    trials = [
        trial(0, 4.0, seed=0),
        trial(1, 4.1, seed=1),
        trial(2, state="diverged", seed=2),
        trial(3, state="running", seed=3),
    ]

    [group] = replicate_groups(trials)

    assert group.lost == 1


def test_the_same_seed_again_is_no_replicate() -> None:
    shared = trial(1, 4.0, r=8, state="shared", source=0)

    [group] = replicate_groups([shared, trial(0, 4.0, r=8)])

    assert [run.number for run in group.runs.values()] == [0]
    assert noise_floor([group]) is None


def test_metrics_are_means_over_the_runs_that_have_them() -> None:
    trials = [trial(0, 4.0, seed=0, metrics={"forgetting": 0.2}), trial(1, 4.0, seed=1, metrics={"forgetting": 0.4})]

    [group] = replicate_groups(trials)

    assert group.metric_mean("forgetting") == pytest.approx(0.3)
    assert group.metric_mean("peak_memory_bytes") is None


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


def test_the_block_residual_allows_missing_seeds() -> None:
    additive = [{0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.5, 1: 2.5}, {1: 2.2, 2: 3.2}]

    sd, freedom = block_residual(additive)

    assert freedom == 2
    assert sd == pytest.approx(0.0, abs=1e-12)
    assert block_residual([{0: 1.0, 1: 2.0}]) == (None, 0)
    assert block_residual([{0: 1.0}, {1: 2.0}]) == (None, 0)
