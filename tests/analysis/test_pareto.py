from __future__ import annotations

import itertools
from operator import le

import numpy as np
import pytest
from analysis.simulated import results, trial

from lora_lab.analysis.pareto import front, hypervolume
from lora_lab.common.errors import InputError
from lora_lab.study.measures import costs


def by_inclusion_and_exclusion(points: list[list[float]], reference: list[float]) -> float:
    volume = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            corner = np.max(chosen, axis=0)
            volume -= (-1) ** size * float(np.prod(np.clip(np.array(reference) - corner, 0, None)))
    return volume


@pytest.mark.parametrize("axes", [1, 2, 3, 4, 5])
def test_the_volume_is_exact(axes: int) -> None:
    rng = np.random.default_rng(axes)
    points = rng.uniform(0, 1.1, (9, axes)).tolist()
    points.append(points[0])
    reference = [1.0] * axes

    assert hypervolume(points, reference) == pytest.approx(by_inclusion_and_exclusion(points, reference))


def test_volumes_one_can_see() -> None:
    assert hypervolume([[0.0, 0.5], [0.5, 0.0]], [1.0, 1.0]) == pytest.approx(0.75)
    assert hypervolume([[0.0, 0.5, 0.0], [0.5, 0.0, 0.0]], [1.0, 1.0, 2.0]) == pytest.approx(1.5)
    assert hypervolume([[1.0, 0.0], [2.0, -1.0]], [1.0, 1.0]) == 0.0
    assert hypervolume([], [1.0, 1.0]) == 0.0
    with pytest.raises(InputError, match="must have 2 values, as the reference has, but one has 3"):
        hypervolume([[0.0, 0.0, 0.0]], [1.0, 1.0])


def test_the_front_of_means_is_that_of_single_runs_where_there_are_no_replicates() -> None:
    single = [result for result in results() if result.replicate == 0]

    found = front(single, ("trainable_params", "forgetting"))

    assert found is not None
    places = {
        result.number: tuple(result.metrics[name] for name in ("eval_loss", "trainable_params", "forgetting"))
        for result in single
        if result.has_value
    }
    expected = {
        number
        for number, place in places.items()
        if not any(other != place and all(map(le, other, place)) for other in places.values())
    }
    assert {member.number for member in found.members} == expected
    assert {(member.on_front, member.probability) for member in found.members} == {(True, None)}
    assert found.hypervolume_interval is None
    assert found.axes == ("eval_loss", "trainable_params", "forgetting")
    assert found.log_axes == ("trainable_params",)


def test_noise_makes_a_place_on_the_front_a_probability() -> None:
    trials = [
        trial(10 * i + seed, 4.0 + 0.01 * (seed - 1), r=r, seed=seed)
        for i, r in enumerate((4, 8))
        for seed in (0, 1, 2)
    ]
    trials += [trial(100 + seed, 3.5 + 0.01 * (seed - 1), r=64, seed=seed) for seed in (0, 1, 2)]

    found = front(trials)

    assert found is not None
    cheap, equal, good = found.members
    assert (cheap.on_front, equal.on_front, good.on_front) == (True, False, True)
    assert cheap.probability == good.probability == 1.0
    assert equal.probability == pytest.approx(0.5, abs=0.15)
    low, high = found.hypervolume_interval or (0, 0)
    assert low < found.hypervolume < high
    assert front(trials) == found


def test_a_front_over_every_axis() -> None:
    found = front(results(), (*costs(), "forgetting"))

    assert found is not None
    assert 0 < found.hypervolume < 1
    assert len(found.members[0].values) == 5


def test_no_configuration_with_all_values_gives_no_front() -> None:
    assert front([trial(0, 4.0)], ("peak_memory_bytes",)) is None
    assert front([]) is None


def test_one_configuration_dominates_its_own_box() -> None:
    found = front([trial(0, 4.0)])

    assert found is not None
    assert found.hypervolume == 1.0


def test_the_ends_of_a_front_count() -> None:
    found = front([trial(0, 4.0, r=8), trial(1, 5.0, r=4)])

    assert found is not None
    assert found.hypervolume == pytest.approx((1.1**2 - 1) / 1.1**2)
