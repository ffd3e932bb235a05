from __future__ import annotations

import pytest
from analysis.simulated import trial

from lora_lab.figures.memory import memory_by_rank, memory_terms, predicted_memory

MIB = 2.0**20


def test_memory_is_given_in_a_readable_unit() -> None:
    def unit(peak: float) -> str:
        return memory_by_rank([trial(0, 4.0, metrics={"peak_memory_bytes": peak})]).figure.layout.yaxis.title.text

    assert unit(3e8) == "peak memory (MiB)"
    assert unit(3e9) == "peak memory (GiB)"
    assert memory_by_rank([trial(0, 4.0)]).words == "No peak memory was measured."


def test_predicted_stands_against_measured_with_the_error_in_words() -> None:
    trials = [
        trial(i, 4.0, metrics={"peak_memory_bytes": 100 * MIB, "predicted_memory_bytes": predicted * MIB})
        for i, predicted in enumerate((99, 101, 104))
    ]
    panel = predicted_memory([*trials, trial(3, 4.0, metrics={"peak_memory_bytes": MIB})])
    equal, points = panel.figure.data

    assert list(equal.x) == list(equal.y) == [99, 104]
    assert list(points.x) == [99, 101, 104]
    assert list(points.y) == [100, 100, 100]
    assert "3 trials: the prediction is off by 1% in the median, by 4% at worst" in panel.words
    assert predicted_memory([trial(0, 4.0)]).figure is None


def test_the_parts_of_a_peak_add_up_to_it() -> None:
    parts = {"base_bytes": 5 * MIB, "adapter_bytes": 2 * MIB, "optimizer_bytes": 4 * MIB}
    trials = [
        trial(i, 4.0, r=r, metrics={**parts, "peak_memory_bytes": peak * MIB})
        for i, (r, peak) in enumerate([(4, 16), (4, 20), (8, 30)])
    ]
    figure = memory_terms(trials).figure

    assert [bar.name for bar in figure.data] == ["base", "adapter", "optimizer state", "not recorded apart"]
    assert [sum(bar.x[row] for bar in figure.data) for row in range(2)] == [pytest.approx(20), pytest.approx(30)]
    assert len(set(figure.data[0].y)) == 2


def test_without_parts_the_peak_is_not_taken_apart() -> None:
    assert memory_terms([trial(0, 4.0, metrics={"peak_memory_bytes": MIB})]).figure is None
