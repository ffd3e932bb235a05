from __future__ import annotations

import pytest
from analysis.simulated import trial

from lora_lab.analysis.noise import noise_floor
from lora_lab.analysis.replicates import replicate_groups


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
