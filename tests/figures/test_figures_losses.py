from __future__ import annotations

import pytest
from analysis.simulated import BASE_LOSS, results, trial

from lora_lab.analysis.verdict import decide
from lora_lab.figures.losses import (
    learning_curves,
    loss_by_rank,
    rank_and_ratio,
)
from lora_lab.figures.parallel import parallel_coordinates
from lora_lab.figures.style import color_of, loss_frame, symbol_of


def findings_of(trials: list) -> object:
    return decide(trials, BASE_LOSS, margin=0.01)


def test_every_finished_trial_is_a_point_and_retrainings_are_hollow() -> None:
    trials = results()
    figure = loss_by_rank(trials, findings_of(trials)).figure

    points = [trace for trace in figure.data if trace.mode == "markers"]
    solid = sum(len(trace.x) for trace in points if not trace.marker.symbol.endswith("-open"))
    hollow = sum(len(trace.x) for trace in points if trace.marker.symbol.endswith("-open"))
    assert solid == sum(result.has_value for result in trials if result.replicate == 0)
    assert hollow == 9


def test_the_rank_axis_has_a_tick_at_every_rank() -> None:
    trials = [trial(0, 4.0, r=4), trial(1, 3.9, r=256)]
    axis = loss_by_rank(trials, findings_of(trials)).figure.layout.xaxis

    assert axis.type == "log"
    assert list(axis.ticktext) == ["4", "256"]


def test_the_tie_is_a_band_as_wide_as_the_margin() -> None:
    trials = [trial(0, 4.0, r=4), trial(1, 4.3, r=8)]
    (band,) = [s for s in loss_by_rank(trials, findings_of(trials)).figure.layout.shapes if s.type == "rect"]

    assert (band.y0, band.y1) == (pytest.approx(4.0), pytest.approx(4.0 + 0.01 * (BASE_LOSS - 4.0)))


def test_the_heat_map_is_blank_where_nothing_was_tried() -> None:
    trials = [
        trial(0, 4.0, r=4, alpha_ratio=1.0),
        trial(1, 4.2, r=4, alpha_ratio=1.0),
        trial(2, 4.1, r=8, alpha_ratio=2.0),
    ]
    (heat,) = rank_and_ratio(trials).figure.data

    assert list(heat.x) == ["4", "8"]
    assert list(heat.y) == ["1", "2"]
    assert [list(row) for row in heat.z] == [[4.0, None], [None, 4.1]]


def test_the_heat_map_marks_what_the_noise_floor_does_not_tell_from_the_best() -> None:
    trials = [
        trial(number, value, r=r, alpha_ratio=1.0, seed=seed)
        for number, (r, seed, value) in enumerate(
            [(4, 0, 4.00), (4, 1, 4.02), (8, 0, 4.03), (8, 1, 4.01), (16, 0, 4.40), (16, 1, 4.42)]
        )
    ]
    panel = rank_and_ratio(trials)

    assert list(panel.figure.data[0].text[0]) == ["4.010 ≈", "4.020 ≈", "4.410"]
    assert "Marked with ≈: not shown to be worse than the best pair" in panel.words


def test_too_many_ratios_are_not_drawn_but_counted() -> None:
    trials = [trial(i, 4.0, lora_alpha=float(i + 1)) for i in range(13)]
    panel = rank_and_ratio(trials)

    assert panel.figure is None
    assert "13 values of alpha / r" in panel.words


def test_pruned_curves_are_dotted_and_the_best_is_thick() -> None:
    trials = [
        trial(0, 4.0, curve={1: 4.4, 2: 4.0}),
        trial(1, state="pruned", curve={1: 4.6}),
        trial(2, 4.1, curve={1: 4.5, 2: 4.1}),
    ]
    panel = learning_curves(trials, findings_of(trials))

    assert [trace.line.dash for trace in panel.figure.data] == ["solid", "dot", "solid"]
    assert [trace.line.width for trace in panel.figure.data] == [4, 1.5, 1.5]
    assert [trace.showlegend for trace in panel.figure.data] == [True, False, False]


@pytest.mark.parametrize(
    ("every", "unit", "last"),
    [((None, None), "epoch", 2), ((50, 20), "optimizer step", 40), ((50, None), "evaluation", 2)],
)
def test_curves_have_the_unit_that_all_trials_share(every: tuple, unit: str, last: int) -> None:
    trials = [trial(i, 4.0, curve={1: 4.4, 2: 4.0}, eval_steps=steps) for i, steps in enumerate(every)]
    figure = learning_curves(trials, findings_of(trials)).figure

    assert figure.layout.xaxis.title.text == unit
    assert figure.data[1].x[-1] == last


def test_parallel_coordinates_show_what_varied_and_draw_the_best_last() -> None:
    trials = [trial(i, 4.0 + i / 10, r=4 * 2**i, learning_rate=1e-4 * (i + 1), target_modules="mlp") for i in range(6)]
    figure = parallel_coordinates(trials).figure

    titles = [note.text for note in figure.layout.annotations if note.text.startswith("<b>")]
    assert titles == ["<b>r</b>", "<b>learning_rate</b>", "<b>eval_loss</b>"]
    assert len(figure.data) == 6
    assert figure.data[-1].name == "best third"
    assert figure.data[-1].y[-1] == 0.0
    assert all(0 <= height <= 1 for trace in figure.data for height in trace.y)


def test_parallel_coordinates_need_two_trials_that_differ() -> None:
    assert parallel_coordinates([trial(0, 4.0)]).figure is None
    assert parallel_coordinates([trial(0, 4.0), trial(1, 4.1)]).figure is None


def test_parallel_coordinates_stand_a_tie_of_all_losses() -> None:
    figure = parallel_coordinates([trial(0, 4.0, r=4), trial(1, 4.0, r=8)]).figure

    assert [trace.y[-1] for trace in figure.data] == [0.0, 0.0]


def test_the_frame_keeps_differences_visible() -> None:
    close = loss_frame([3.60, 3.62, 3.65], base_loss=5.0)
    wide = loss_frame([3.6, 4.4], base_loss=5.0)
    spoiled = loss_frame([3.6, 3.7, 90.0], base_loss=5.0)

    assert not close.shows_base
    assert close.high < 3.7
    assert wide.shows_base
    assert wide.high > 5.0
    assert (spoiled.hidden, spoiled.high < 5.5) == (1, True)


def test_the_frame_of_one_point_and_of_a_useless_study() -> None:
    one = loss_frame([4.0], base_loss=5.0)
    useless = loss_frame([5.5, 6.0], base_loss=5.0)

    assert one.low < 4.0 < 5.0 < one.high
    assert useless.low < 5.0 < 6.0 < useless.high
    assert useless.hidden == 0


def test_target_sets_are_told_apart_without_color() -> None:
    assert len({(color_of(index), symbol_of(index)) for index in range(36)}) == 36
    assert len({symbol_of(index) for index in range(6)}) == 6
