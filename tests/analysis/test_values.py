from __future__ import annotations

from analysis.simulated import trial

from lora_lab.analysis.values import by_value, rank_table


def test_values_are_counted_and_ordered() -> None:
    trials = [
        trial(0, 4.0, r=64),
        trial(1, 4.2, r=64),
        trial(2, 4.4, r=64),
        trial(3, state="diverged", r=8),
        trial(4, 3.0, r=8, replicate=1, confirms=0),
    ]

    eight, sixty_four = by_value(trials, "r")

    assert (eight.label, eight.tried, eight.finished, eight.best, eight.best_trial) == ("8", 1, 0, None, None)
    assert (sixty_four.label, sixty_four.tried, sixty_four.best, sixty_four.median) == ("64", 3, 4.0, 4.2)
    assert sixty_four.best_trial == 0


def test_many_numbers_become_ranges_that_hold_every_trial_once() -> None:
    trials = [trial(i, 4.0 + i, learning_rate=1e-4 * (i + 1)) for i in range(10)]

    rows = by_value(trials, "learning_rate")

    assert [row.label for row in rows] == ["1e-4 to 3e-4", "4e-4 to 6e-4", "7e-4 to 9e-4", "1e-3 to 1e-3"]
    assert [row.tried for row in rows] == [3, 3, 3, 1]


def test_the_ratio_is_derived_where_alpha_is_searched() -> None:
    assert [row.label for row in by_value([trial(0, 4.0, r=16, lora_alpha=8.0)], "alpha_ratio")] == ["0.5"]
    assert [row.label for row in by_value([trial(0, 4.0, r=16, alpha_ratio=2.0)], "lora_alpha")] == ["32"]


def test_tuples_and_names_can_be_values() -> None:
    trials = [trial(0, 4.0, layers="all"), trial(1, 4.0, layers=(0, 1))]

    assert [row.label for row in by_value(trials, "layers")] == ["0,1", "all"]


def test_ranks_are_compared_within_a_target_set() -> None:
    rows = rank_table(
        [
            trial(0, 4.0, r=8, target_modules="mlp"),
            trial(1, 4.2, r=8, target_modules="mlp"),
            trial(2, 4.1, r=8, target_modules="attention"),
            trial(3, 3.9, r=64, target_modules="mlp"),
        ]
    )

    assert [(row.targets, row.r, row.finished) for row in rows] == [
        ("attention", 8, 1),
        ("mlp", 8, 2),
        ("mlp", 64, 1),
    ]
    assert (rows[1].best, rows[1].best_trial, rows[1].trainable_params) == (4.0, 0, 8000.0)
