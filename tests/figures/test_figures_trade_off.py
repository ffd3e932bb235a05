"""The figures of the trade-off analysis, from findings made up for the purpose."""

from __future__ import annotations

from dataclasses import replace

from analysis.simulated import trial

from lora_lab.analysis.adequate_rank import RankCurve, RankPoint
from lora_lab.analysis.epochs import EpochCurve, EpochPoint
from lora_lab.analysis.equal_budget import ArmComparison, ArmValue, Comparison
from lora_lab.analysis.forgetting import ForgettingPoint, ForgettingTrade
from lora_lab.analysis.importance import Importance
from lora_lab.analysis.pareto import Front, FrontMember
from lora_lab.analysis.scale import RuleScore, ScaleResponse
from lora_lab.analysis.spectrum import SpectrumSummary
from lora_lab.figures.epochs import epochs_and_overfitting
from lora_lab.figures.equal_budget import arm_panels
from lora_lab.figures.evidence import AdapterSpectrum
from lora_lab.figures.fronts import forgetting_against_gain, pareto_panel
from lora_lab.figures.importance import importance_panel
from lora_lab.figures.ranks import adequate_ranks, rules_of_thumb, scale_response
from lora_lab.figures.spectra import rank_used
from lora_lab.study.measures import EVAL_LOSS


def rank_point(r: int, value: float, interval: tuple[float, float] | None) -> RankPoint:
    return RankPoint(
        r=r,
        number=r,
        learning_rate=1e-3,
        value=value,
        runs=3,
        interval=interval,
        tried=2,
        rates=2,
        difference=value - 3.0,
        p=0.02,
        decision="equivalent" if value < 3.1 else "undecided",
        within_margin=value < 3.1,
        trainable_params=1000.0 * r,
    )


def curve_of(targets: str, *points: RankPoint, chosen: int) -> RankCurve:
    return RankCurve(
        measure=EVAL_LOSS,
        targets=targets,
        layers="all",
        points=points,
        margin=0.1,
        best_r=points[-1].r,
        smallest_adequate_r=chosen,
        tested=True,
        own_family=0,
        sentence=f"{targets}: rank {chosen} is enough.",
    )


def test_ranks_have_their_intervals_and_the_smallest_adequate_one_is_ringed() -> None:
    points = [rank_point(4, 3.4, (3.3, 3.6)), rank_point(8, 3.05, (3.0, 3.1)), rank_point(16, 3.0, None)]
    panel = adequate_ranks([curve_of("mlp", *points, chosen=8)])
    line, ring = panel.figure.data

    assert [round(up, 3) for up in line.error_y.array] == [0.2, 0.05, 0]
    assert [round(down, 3) for down in line.error_y.arrayminus] == [0.1, 0.05, 0]
    assert (list(ring.x), list(ring.y), ring.marker.symbol) == ([8], [3.05], "circle-open")
    assert "mlp: rank 8 is enough." in panel.words
    assert panel.table.marked == [1]
    assert [row[5].text for row in panel.table.rows] == ["3.3000 to 3.6000", "3.0000 to 3.1000", ""]


def test_target_sets_stand_side_by_side_at_a_rank() -> None:
    points = [rank_point(4, 3.4, None), rank_point(8, 3.0, None)]
    figure = adequate_ranks([curve_of("a", *points, chosen=8), curve_of("b", *points, chosen=8)]).figure
    lines = [trace for trace in figure.data if trace.showlegend is None]

    assert lines[0].x[0] < 4 < lines[1].x[0]
    assert lines[0].marker.symbol != lines[1].marker.symbol


def test_without_two_ranks_there_is_no_rank_curve() -> None:
    assert adequate_ranks([]).figure is None


def rule(name: str, regret: float | None, noise: float | None = None) -> RuleScore:
    ranks = () if regret is None else (4, 8)
    return RuleScore(rule=name, regret=regret, worst=regret, ranks=ranks, of=3, noise=noise)


def test_rules_are_scored_with_their_noise_and_untried_ones_only_listed() -> None:
    panel = rules_of_thumb([rule("alpha = r", 0.01, 0.004), rule("alpha = 2 r", 0.05, 0.004), rule("alpha = 16", None)])
    mean, worst = panel.figure.data

    assert list(mean.y) == ["alpha = r", "alpha = 2 r"]
    assert [round(width, 6) for width in mean.error_x.array] == [0.008, 0.008]
    assert list(worst.x) == [0.01, 0.05]
    assert [row[0].text for row in panel.table.rows] == ["alpha = r", "alpha = 2 r", "alpha = 16"]
    assert panel.table.rows[2][-1].text == "0 of 3 ranks"
    assert rules_of_thumb([rule("alpha = 16", None)]).figure is None


def test_the_scale_response_needs_three_products() -> None:
    assert scale_response(None).figure is None
    assert scale_response(ScaleResponse(points=(), explained=())).figure is None


def arm(name: str, value: float, known: bool | None) -> ArmValue:
    return ArmValue(
        arm=name,
        value=value,
        interval=(value - 0.1, value + 0.1),
        numbers=(1, 2),
        tried=3,
        difference=value - 3,
        known=known,
    )


def test_arms_at_one_rank_are_dots_and_over_budgets_lines() -> None:
    pair = (arm("all", 3.0, None), arm("last_half", 3.2, known=True))
    one = Comparison(r=16, trainable_params=None, arms=pair)
    budgets = tuple(Comparison(r=None, trainable_params=size, arms=pair) for size in (1e5, 2e5))
    comparison = ArmComparison(by="layers", at_equal_rank=(one,), at_equal_budget=budgets, sentence="All layers win.")
    rank, budget = arm_panels(comparison)

    assert [list(trace.y) for trace in rank.figure.data] == [["all"], ["last_half"]]
    assert (rank.key, rank.title) == ("layers-at-equal-rank", "Layers at equal rank")
    assert [list(trace.x) for trace in budget.figure.data] == [[1e5, 2e5], [1e5, 2e5]]
    assert budget.words.startswith("All layers win.")
    assert [row[0].text for row in budget.table.rows] == ["100k parameters"] * 2 + ["200k parameters"] * 2
    assert [row[6].text for row in rank.table.rows] == ["best", "yes"]


def test_arms_that_cannot_be_compared_say_why() -> None:
    comparison = ArmComparison(by="target_modules", at_equal_rank=(), at_equal_budget=(), sentence="No overlap.")

    assert [(panel.figure, panel.words) for panel in arm_panels(comparison)] == [
        (None, "No two of them were tried at the same rank: not drawn."),
        (None, "No overlap."),
    ]


def test_the_front_is_drawn_as_steps_and_what_may_be_on_it_hollow() -> None:
    trials = [trial(0, 4.3, r=4), trial(1, 4.1, r=16), trial(2, 4.11, r=8), trial(3, 4.6, r=32)]
    members = (
        FrontMember(number=0, values=(4.3, 4000.0), on_front=True, probability=1.0),
        FrontMember(number=2, values=(4.11, 8000.0), on_front=False, probability=0.4),
        FrontMember(number=1, values=(4.1, 16000.0), on_front=True, probability=0.9),
    )
    front = Front(
        axes=("eval_loss", "trainable_params"),
        members=members,
        reference=(4.6, 32000.0),
        hypervolume=0.7,
        hypervolume_interval=(0.6, 0.75),
        log_axes=("trainable_params",),
    )
    panel = pareto_panel(front, trials)
    steps, *points = panel.figure.data

    assert (steps.line.shape, list(steps.x), list(steps.y)) == ("hv", [4000, 16000], [4.3, 4.1])
    drawn = {(trace.marker.symbol, trace.opacity): list(trace.x) for trace in points}
    assert drawn == {("circle", 0.35): [32000], ("circle-open", 1.0): [8000], ("circle", 1.0): [4000, 16000]}
    assert sum(trace.showlegend for trace in points) == 1
    assert "70.0% of the box" in panel.words
    assert "60.0% to 75.0%" in panel.words
    assert [row[-1].text for row in panel.table.rows] == ["100%", "40%", "90%"]


def epoch_curve(number: int, overfits: bool | None, onset: float | None) -> EpochCurve:
    points = tuple(
        EpochPoint(at=at, value=value, interval=(value - 0.1, value + 0.1), rise=value - 3.0, p=None)
        for at, value in ((1.0, 3.2), (2.0, 3.0), (3.0, 3.3))
    )
    return EpochCurve(
        number=number,
        numbers=(number,),
        unit="epoch",
        points=points,
        runs=3,
        apart=False,
        minimum_at=2.0,
        minimum_interval=(1.0, 2.0),
        overfits=overfits,
        onset=onset,
    )


def test_a_cross_marks_where_overfitting_begins() -> None:
    panel = epochs_and_overfitting([epoch_curve(0, True, 3.0), epoch_curve(1, False, None)], {0: "r=4", 1: "r=8"})
    first, cross, second = panel.figure.data

    assert (list(cross.x), list(cross.y), cross.marker.symbol) == ([3.0], [3.3], "x")
    assert (first.name, second.name) == ("trial 0", "trial 1")
    assert "Of 2 replicated configurations, 1 is shown to end above its minimum" in panel.words
    assert [row[5].text for row in panel.table.rows] == ["1 to 2", "1 to 2"]
    assert panel.figure.layout.xaxis.dtick == 1


def test_what_was_not_tested_reads_so_in_every_table() -> None:
    untested = replace(rank_point(4, 3.0, None), p=None, decision="not tested")
    ranks = adequate_ranks([curve_of("mlp", untested, rank_point(8, 3.0, None), chosen=8)])
    pair = (arm("all", 3.0, None), arm("last_half", 3.2, None))
    comparison = Comparison(r=16, trainable_params=None, arms=pair)
    arms, _ = arm_panels(ArmComparison(by="layers", at_equal_rank=(comparison,), at_equal_budget=(), sentence=""))
    epochs = epochs_and_overfitting([epoch_curve(0, None, None)], {0: "r=4"})

    assert [row[11].text for row in ranks.table.rows] == ["not tested", "equivalent"]
    assert [row[6].text for row in arms.table.rows] == ["best", "not tested"]
    assert [row[7].text for row in epochs.table.rows] == ["not tested"]
    assert "not tested" in arms.figure.data[1].text[0]


def test_without_replicates_the_onset_is_not_known() -> None:
    assert "is not known" in epochs_and_overfitting([epoch_curve(0, None, None)], {}).words
    assert epochs_and_overfitting([], {}).figure is None


def test_forgetting_is_drawn_against_the_gain() -> None:
    points = tuple(
        ForgettingPoint(
            number=number,
            r=4,
            targets="mlp",
            layers="all",
            runs=1,
            gain=gain,
            gain_interval=None,
            forgetting=0.4 * gain,
            forgetting_interval=None,
            on_front=True,
        )
        for number, gain in ((0, 1.0), (1, 0.5))
    )
    trade = ForgettingTrade(points=points, rank_correlation=None, margin=0.01, gentlest=0, sentence="It costs.")
    panel = forgetting_against_gain(trade, 3.37)
    front, dots = panel.figure.data

    assert list(front.x) == [0.5, 1.0]
    assert (list(dots.x), list(dots.y)) == ([1.0, 0.5], [0.4, 0.2])
    assert "It costs." in panel.words
    assert "3.3700 nats per token" in panel.words
    assert forgetting_against_gain(None, None).figure is None


def test_importance_is_never_without_its_caveat() -> None:
    shares = {"PED-ANOVA": {"r": 0.25, "learning_rate": 0.75}, "fANOVA": {"learning_rate": 1.0}}
    panel = importance_panel(Importance(trials=12, shares=shares, caveat="Adaptive sampling biases it."))
    ped, fanova = panel.figure.data

    assert (list(ped.y), list(ped.x)) == (["r", "learning_rate"], [25.0, 75.0])
    assert list(fanova.x) == [0.0, 100.0]
    assert "Adaptive sampling biases it." in panel.words
    assert [[cell.text for cell in row] for row in panel.table.rows] == [
        ["r", "25.0%", ""],
        ["learning_rate", "75.0%", "100.0%"],
    ]
    assert importance_panel(None).figure is None


def test_the_rank_used_stands_against_the_rank_given() -> None:
    summary = SpectrumSummary(
        modules=28, r=64, frobenius_norm=2.0, effective_rank=20.0, stable_rank=3.0, rank_used=30.0, share_used=0.4
    )
    panel = rank_used([AdapterSpectrum(number=8, label="r=64", role="best", summary=summary)])
    _, used, effective = panel.figure.data

    assert (list(used.x), list(used.y), list(effective.y)) == ([64], [30.0], [20.0])
    assert "trial 8 (best)" in used.text[0]
    assert [cell.text for cell in panel.table.rows[0]][3:9] == ["28", "64", "30", "20", "3", "40.0%"]
    assert rank_used([]).figure is None
